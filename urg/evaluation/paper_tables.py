"""The tables of an evaluation: Table 2 of the URG paper and LLM-Blender's poster with the published figures in columns
of their own, all systems with intervals, and the tests of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urg.evaluation.comparison import LOWER_IS_BETTER, Comparison, Result
from urg.evaluation.sheet import NONE, Group, Line, Sheet
from urg.evaluation.table import best, columns, heading, number, widely_covered
from urg.systems.protocol import Kind

if TYPE_CHECKING:
    from urg.evaluation.results import Provenance
    from urg.evaluation.statistics import Difference, Statistics

PUBLISHED = Path(__file__).with_name("published.yaml")
CEILING = "Ceiling (sees the labels)"
TABLE2_GROUPS: dict[Kind, str] = {
    "model": "Open-Source LLMs",
    "closed": "Closed-Source LLMs",
    "floor": "selection-based",
    "ranker": "selection-based",
    "fuser": "generation-based",
    "ceiling": CEILING,
}
INTEREST: tuple[Kind, ...] = (
    "ranker",
    "fuser",
    "ceiling",
    "closed",
    "floor",
    "model",
)  # of the differences: what is asked first
POSTER_GROUPS: dict[Kind, str] = {
    "model": "LLMs",
    "closed": "LLMs",
    "floor": "Rankers",
    "ranker": "Rankers",
    "fuser": "LLM-Blender",
    "ceiling": "Analysis",
}


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """What published.yaml holds."""
    import yaml

    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def stands_beside(row: dict[str, Any], names: Container[str], parameters: int | None) -> str | None:
    """Which of `names` stands beside a published row, if any does. parameters: our URG's; None: not known."""
    if "parameters" in row and abs((parameters or 0) / row["parameters"] - 1) > 0.1:
        return None
    return next((known for known in row["ours"] if known in names), None)


def published_urg(parameters: int | None) -> dict[str, Any] | None:
    """Table 2's row of the published URG that has this size, if there is one."""
    rows = (row for group in published()["urg"]["table2"]["groups"] for row in group["rows"])
    return next((row for row in rows if stands_beside(row, {"urg"}, parameters)), None)


def is_mixinstruct(comparison: Comparison) -> bool:
    """Whether some single model of ours is one that the papers have."""
    names = {known for row in published()["urg"]["table2"]["groups"][0]["rows"] for known in row["ours"]}
    return any(result.kind == "model" and result.name in names for result in comparison.results)


def table2(
    comparison: Comparison, where: str, statistics: Statistics | None = None, parameters: int | None = None
) -> Sheet:
    """Table 2 in the paper's order and grouping. where: the split that ours are from, for the title. statistics: show
    our intervals too. parameters: our URG's, which stands beside the published one of its size only."""
    source = published()["urg"]
    notes = (f"published: {source['source']}.", "bleu: mean sentence BLEU.", *source["slips"][:3])
    title = f"Table 2: {where}"
    return _beside(comparison, title, source["table2"], TABLE2_GROUPS, number, notes, statistics, parameters=parameters)


def poster(comparison: Comparison, where: str, statistics: Statistics | None = None) -> Sheet:
    """The poster's table: BERTScore in percent, and the judge's metrics from `cmp_results`. Arguments as for
    `table2`."""
    source = published()["llm_blender"]
    notes = (
        f"published: {source['source']}.",
        *source["slips"],
        "A fused text has no verdicts of its own, so none of the judge's metrics.",
        f"ours, gpt_rank: {comparison.judged.rule}.",
        "ours, beat_vic and beat_oa: a pick must have points above 0 against the model, so that picking it does not "
        "beat it. The oracle's published 100 are by rank, which metrics.json has as beat_vic_rank and beat_oa_rank.",
    )
    title = f"LLM-Blender's table: {where}"
    return _beside(comparison, title, source["poster"], POSTER_GROUPS, _two_digits, notes, statistics, 100)


def _two_digits(metric: str, value: float) -> str:
    return f"{value:.2f}"


def _beside(
    comparison: Comparison,
    title: str,
    table: dict[str, Any],
    groups: dict[Kind, str],
    shown: Callable[[str, float], str],
    notes: Sequence[str],
    statistics: Statistics | None,
    bertscore_scale: float = 1,
    parameters: int | None = None,
) -> Sheet:
    """Our rows in the published order, each beside the published one, then our others; grouped as published."""
    metrics = table["columns"]
    printed = {group["name"]: group["rows"] for group in table["groups"]}
    left = {result.name: result for result in comparison.results}
    rows: dict[str, list[tuple[Result | None, dict[str, Any] | None]]] = {name: [] for name in printed}
    for name, published_rows in printed.items():
        for row in published_rows:
            known = stands_beside(row, left, parameters)
            rows[name].append((left.pop(known) if known else None, row))
    for result in left.values():
        rows.setdefault(groups[result.kind], []).append((result, None))

    def scaled(metric: str, value: float) -> str:
        return shown(metric, value * bertscore_scale if metric == "bertscore" else value)

    def line(ours: Result | None, row: dict[str, Any] | None, marked: frozenset[int]) -> Line:
        mine = [NONE if ours is None else _with_interval(ours, m, statistics, scaled) for m in metrics]
        values = row["values"] if row else [None] * len(metrics)
        theirs = [NONE if value is None else shown(m, value) for m, value in zip(metrics, values, strict=True)]
        return Line((ours.name if ours else NONE, *mine, row["name"] if row else NONE, *theirs), marked)

    return Sheet(
        title,
        ("system", *metrics, "published as", *metrics),
        tuple(
            Group(name, tuple(line(o, r, _best_in(o, [x for x, _ in members], metrics)) for o, r in members))
            for name, members in rows.items()
            if members
        ),
        spans=(("", 1), ("ours", len(metrics)), ("published", len(metrics) + 1)),
        notes=tuple(notes),
    )


def _best_in(ours: Result | None, group: Sequence[Result | None], metrics: Sequence[str]) -> frozenset[int]:
    """The columns in which `ours` is the best of its group (ties: all of them); none where it stands alone, or has few
    of the rows."""
    found = set()
    for column, metric in enumerate(metrics, start=1):
        having = [r for r in group if r is not None and metric in r.means and r.kind != "ceiling"]
        full = widely_covered(having, metric)
        choose = min if metric in LOWER_IS_BETTER else max
        best_mean = choose((r.means[metric] for r in full), default=None)
        if len(having) > 1 and any(r is ours and r.means[metric] == best_mean for r in full):
            found.add(column)
    return frozenset(found)


def sheets(comparison: Comparison, provenance: Provenance, statistics: Statistics) -> list[Sheet]:
    """Every table of an evaluation."""
    where = provenance.title
    found = [all_systems(comparison, statistics, f"All systems: {where}")]
    parameters = provenance.model.get("parameters")
    found += [table2(comparison, where, statistics, parameters), poster(comparison, where, statistics)]
    return found + [differences(comparison, statistics, metric) for metric in statistics.tests]


def all_systems(comparison: Comparison, statistics: Statistics, title: str) -> Sheet:
    """Every system and metric with its interval."""
    metrics, marked = columns(comparison), best(comparison)
    groups: dict[Kind, list[Line]] = {}
    for result in comparison.results:
        cells = [result.name, str(result.rows), *(_with_interval(result, m, statistics) for m in metrics)]
        top = frozenset(i for i, m in enumerate(metrics, start=2) if (result.name, m) in marked)
        groups.setdefault(result.kind, []).append(Line(tuple(cells), top))
    head = ("system", "rows", *(heading(metric, comparison) for metric in metrics))
    return Sheet(title, head, tuple(Group("", tuple(lines)) for lines in groups.values()), notes=(statistics.method,))


def _with_interval(
    result: Result, metric: str, statistics: Statistics | None, shown: Callable[[str, float], str] = number
) -> str:
    if metric not in result.means:
        return NONE
    interval = statistics.intervals.get(result.name, {}).get(metric) if statistics else None
    ends = "" if interval is None else f" [{shown(metric, interval[0])}, {shown(metric, interval[1])}]"
    return shown(metric, result.means[metric]) + ends


def differences(comparison: Comparison, statistics: Statistics, metric: str) -> Sheet:
    """The tested differences of one metric: a column for each system that was held against others, a row for each of
    these; column minus row, with stars by Holm-corrected p."""
    found = {(test.first, test.second): test for test in statistics.tests[metric]}
    ordered = [r.name for r in sorted(comparison.results, key=lambda result: INTEREST.index(result.kind))]
    held, against = ([name for name in ordered if name in {pair[side] for pair in found}] for side in (0, 1))
    lines = [
        Line((other, *(_difference(metric, found.get((name, other)), found.get((other, name))) for name in held)))
        for other in against
    ]
    title = f"Differences in {heading(metric, comparison)}: column minus row"
    note = f"* p < .05, ** p < .01, *** p < .001 after Holm's correction over the {len(found)} pairs of this table"
    note += "; lower is better" if metric in LOWER_IS_BETTER else ""
    return Sheet(title, ("", *held), (Group("", tuple(lines)),), notes=(note,))


def _difference(metric: str, forward: Difference | None, backward: Difference | None) -> str:
    test = forward or backward
    if test is None:
        return ""
    stars = "*" * sum(test.p_holm < level for level in (0.05, 0.01, 0.001))
    value = test.difference if forward else -test.difference
    text = number(metric, abs(value))
    return ("−" if value < 0 else "+") + text + stars
