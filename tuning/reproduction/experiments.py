"""Every experiment of the paper: the steps that it needs, and the table or plot that shows it.

A new one is a pair of functions, a line in EXPERIMENTS, and a test. Published figures stand in columns of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.page import Figure as Plot
from data_pipeline.page import figure_layout
from tuning.reproduction.claims import difference, is_above
from tuning.reproduction.recipe import ABLATIONS, ALL_CANDIDATES, BASELINES, NO_RANKING, URG, Recipe
from tuning.reproduction.results import TEXT_METRICS, Results, shown
from tuning.reproduction.sureness import all_rows
from urg.evaluation.paper_tables import published, published_urg, stands_beside
from urg.evaluation.sheet import NONE, Group, Line, Sheet

Shown = Sheet | Plot | str
"""A table, a plot, or a sentence."""


@dataclass(frozen=True)
class Experiment:
    """title: what it is in the paper. needs: adds its steps and returns their names. show: what came of it."""

    title: str
    needs: Callable[[Recipe], list[str]]
    show: Callable[[Results], list[Shown]]


def _per_seed(ask: Callable[[Recipe, int], str]) -> Callable[[Recipe], list[str]]:
    return lambda recipe: [ask(recipe, seed) for seed in recipe.seeds]


def _variants(names: Callable[[Recipe], Sequence[str]]) -> Callable[[Recipe], list[str]]:
    """Each of the variants, trained and measured on the test split."""
    return lambda recipe: [recipe.evaluate(name, seed) for name in names(recipe) for seed in recipe.seeds]


def _table1_needs(recipe: Recipe) -> list[str]:
    values = {"input": recipe.shards(), "output": str(recipe.root / "stats")}
    return list(recipe.add("stats", "data_pipeline.stats", values, recipe.prepare()))


def _table1(results: Results) -> list[Shown]:
    sources = json.loads((results.recipe.root / "stats" / "stats.json").read_text(encoding="utf-8"))["sources"]
    source, left, lines = published()["urg"], dict(sources), []
    for row in source["table1"]["rows"]:
        own = [left.pop(name) for name in row["ours"] if name in left]
        count = f"{sum(each['rows'] for each in own):,}" if own else NONE
        lines.append(Line((row["name"], count, f"{row['values'][0]:,}", row["values"][1])))
    lines += [Line((name, f"{each['rows']:,}", NONE, NONE)) for name, each in left.items()]
    return [_sheet("Rows by source", ("source", "ours", "published", "published: reference by"), lines)]


def _table2_needs(recipe: Recipe) -> list[str]:
    return [*(recipe.compare(seed) for seed in recipe.seeds), *recipe.compare_all_rows()]


def _table2(results: Results) -> list[Shown]:
    """Mean ± spread over seeds; the published column in the same cell order as the paper. Then the first seed on all
    rows, with intervals and tests."""
    table, groups = published()["urg"]["table2"], []
    metrics = [m for m in ("label", *TEXT_METRICS) if results.compared(URG, m) or results.compared("urg_rank", m)]
    names = _systems(results)
    for group in table["groups"]:
        lines = []
        for row in group["rows"]:
            name = stands_beside(row, names, results.parameters)
            if name is not None:
                names.remove(name)
            theirs = dict(zip(table["columns"], row["values"], strict=True))
            lines.append(_table2_line(results, name, row["name"], metrics, theirs))
        groups.append(Group(group["name"], tuple(lines)))
    rest = tuple(_table2_line(results, name, NONE, metrics, {}) for name in names)
    groups = [group for group in [*groups, Group("ours alone", rest)] if group.lines]
    head = ("system", *metrics, "published as", *table["columns"])
    spans = (("", 1), ("ours", len(metrics)), ("published", 1 + len(table["columns"])))
    document = results.document(results.recipe.all_rows)
    found: list[Shown] = [Sheet("All systems, all metrics", head, tuple(groups), spans, notes=(_seeds(results),))]
    return found if document is None else [*found, *all_rows(document, metrics)]


def _systems(results: Results) -> list[str]:
    document = results.document(f"compare-s{results.recipe.seeds[0]}") or {"systems": {}}
    return list(document["systems"])


def _table2_line(results: Results, name: str | None, printed: str, metrics: Sequence[str], theirs: Any) -> Line:
    ours = [shown(results.compared(name, metric), metric) if name else NONE for metric in metrics]
    columns = published()["urg"]["table2"]["columns"]
    return Line((name or NONE, *ours, printed, *(_number(theirs.get(column)) for column in columns)))


def _table3(results: Results) -> list[Shown]:
    metrics = [metric for metric in TEXT_METRICS if results.variant(URG, metric)]
    columns = published()["urg"]["table3"]["columns"]
    beside, others = _published3(results.parameters)
    lines = []
    for name in (URG, *ABLATIONS):
        system = "urg_random_k" if name == NO_RANKING else URG
        ours = [shown(results.variant(name, metric, system), metric) for metric in metrics]
        printed, theirs = beside.get(name, (NONE, [None] * len(columns)))
        pick = shown(results.variant(name, "label", "urg_rank"))
        lines.append(Line((name, *ours, pick, printed, *map(_number, theirs))))
    none = [NONE] * (2 + len(metrics))
    lines += [Line((*none, printed, *map(_number, theirs))) for printed, theirs in others]
    head = ("variant", *metrics, "pick: label", "published as", *columns)
    spans = (("", 1), ("ours: fused text", len(metrics)), ("", 1), ("published", 1 + len(columns)))
    notes = (
        _seeds(results),
        "wo_ranking: γ=0, K at random in training and in use. wo_rank_loss: γ=0, attention still selects. "
        "all_candidates: nothing is filtered. wo_erm: neither KL nor the second cross-entropy. wo_kl: β=0.",
        published()["urg"]["slips"][0],
    )
    return [Sheet("Ablations", head, (Group("", tuple(lines)),), spans, notes)]


Printed = tuple[str, list[float]]
"""A row as published: its name, its figures."""


def _published3(parameters: int | None) -> tuple[dict[str, Printed], list[Printed]]:
    """By variant what was published of a URG of this size, and Table 3's rows where they are of another. They are of
    URG (3B); of the smaller one only the whole model was published, in Table 2."""
    source, own = published()["urg"], published_urg(parameters)
    rows = {row["name"]: row["values"] for row in source["table3"]["rows"]}
    printed = {URG: "URG", NO_RANKING: "w/o ranking", "wo_erm": "w/o ERM"}
    of_3b = {variant: (f"{name} (3B)", rows[name]) for variant, name in printed.items()}
    if own is None or own["name"] == "URG (3B)":
        return (of_3b, []) if own else ({}, list(of_3b.values()))
    values = dict(zip(source["table2"]["columns"], own["values"], strict=True))
    beside = (f"{own['name']}, Table 2", [values[column] for column in source["table3"]["columns"]])
    return {URG: beside}, list(of_3b.values())


def _recipes(recipes: Callable[[Recipe], Mapping[str, Mapping[str, Any]]]) -> Callable[[Results], list[Shown]]:
    """The preset's own recipe beside others, and which of them win by more than their spread over seeds."""

    def show(results: Results) -> list[Shown]:
        metrics = [metric for metric in TEXT_METRICS if results.variant(URG, metric)]
        ranks, lines = ("label", "hit@1", "ndcg", "spearman"), []
        for name, changed in {URG: {}, **recipes(results.recipe)}.items():
            told = ", ".join(f"{key} {value}" for key, value in changed.items()) or "the preset's own"
            fused = [shown(results.variant(name, metric), metric) for metric in metrics]
            picked = [shown(results.variant(name, metric, "urg_rank")) for metric in ranks]
            lines.append(Line((name, told, *fused, *picked, *_against_own(results, name))))
        head = ("recipe", "changes", *metrics, *ranks, f"text: {results.headline}", "pick: label")
        spans = (("", 2), ("fused text", len(metrics)), ("ranking", len(ranks)), ("against the preset's own", 2))
        note = (
            "Against the preset's own, seed by seed: wins or loses where each of several does, by more than the spread."
        )
        return [Sheet("Recipes", head, (Group("", tuple(lines)),), spans, (_seeds(results), note))]

    return show


def _against_own(results: Results, name: str) -> list[str]:
    """A recipe's text and pick against the preset's own, with a word where the difference counts."""
    cells = []
    for metric, system in ((results.headline, URG), ("label", "urg_rank")):
        own, other = (results.variant(variant, metric, system) for variant in (URG, name))
        gap, lost = difference(other, own), difference(own, other)
        if gap is None or lost is None or name == URG:
            cells.append(NONE)
            continue
        word = " wins" if is_above(gap) else " loses" if is_above(lost) else ""
        cells.append(gap.text() + (word if len(gap.values) > 1 else ""))  # one seed has no spread
    return cells


def _benchmark(experiment: str) -> Callable[[Recipe], list[str]]:
    return lambda recipe: [recipe.benchmark(experiment)]


def _speed(results: Results) -> list[Shown]:
    from urg.benchmarks.tables import sheets

    measured = results.benchmark("rankers") or {}
    return list(sheets(measured | {"missing": {}}))  # other experiments' ratios, which nobody asked for


def _complexity(results: Results) -> list[Shown]:
    growth = (results.benchmark("complexity") or {})["complexity"]
    lines = [Line((name, f"N^{value:.2f}")) for name, value in growth["analytic_n_exponent"].items()]
    lines.append(Line(("urg, measured", f"N^{growth['n_exponent']:.2f}")))
    lines.append(Line(("pair_ranker_full, measured", f"N^{growth['pair_ranker_full_n_exponent']:.2f}")))
    lines.append(Line(("urg, measured, tokens of a candidate", f"L^{growth['length_exponent']:.2f}")))
    seconds = growth["seconds_by_n"]
    drawn = {"type": "scatter", "mode": "lines+markers", "x": [int(n) for n in seconds], "y": list(seconds.values())}
    layout = figure_layout("candidates N", "seconds a batch")
    layout["xaxis"] |= {"type": "log"}
    layout["yaxis"] |= {"type": "log"}
    plot = Plot("Ranking time by N", "URG, both axes logarithmic.", [drawn | {"marker": {"color": "--accent"}}], layout)
    told = "The first five: operations of the encoder. Measured: 12 candidates where their length L grows."
    return [_sheet("Growth with N and L", ("system", "time or operations"), lines, told), plot]


def _table5(results: Results) -> list[Shown]:
    table, lines = published()["urg"]["table5"], []
    metrics = [m for m in (*table["columns"], "rougeL") if results.change(URG, "12", m) is not None]
    for row in table["rows"]:
        name = row["ours"][0]
        ours = [_percent(results, name, row["added"], metric) for metric in metrics]
        lines.append(Line((name, row["added"], *ours, *map(_number, row["values"]))))
    head = ("fuser", "added", *metrics, *table["columns"])
    spans = (("", 2), ("ours: Δ%", len(metrics)), ("published: Δ%", len(table["columns"])))
    note = "Base: the gold two best. Added: gold ranks of the candidates beside them; 12 is the last. No retraining."
    return [Sheet("Change by noise", head, (Group("", tuple(lines)),), spans, (note, _seeds(results)))]


def _percent(results: Results, name: str, added: str, metric: str) -> str:
    change = results.change(name, added, metric)
    return NONE if change is None else change.text(2)


def _human(recipe: Recipe) -> list[str]:
    return [recipe.export("human", recipe.seeds[0], {}, ("pair_ranker", "gen_fuser"))]


def _cases(recipe: Recipe) -> list[str]:
    return [recipe.export("cases", recipe.seeds[0], {"cases": 9}, BASELINES)]


def _files(pattern: str, what: str) -> Callable[[Results], list[Shown]]:
    """A sentence that says where the files are that an export wrote beside Table 2."""

    def show(results: Results) -> list[Shown]:
        folder = results.recipe.output(f"compare-s{results.recipe.seeds[0]}")
        names = ", ".join(sorted(str(path.relative_to(folder)) for path in folder.glob(pattern)))
        return [f"{what} {folder}: {names}."]

    return show


def _fig3_needs(recipe: Recipe) -> list[str]:
    variants = [*map(recipe.with_k, recipe.preset.ks), ALL_CANDIDATES]
    return [recipe.train(variant, seed) for variant in variants for seed in recipe.seeds]


def _fig3(results: Results) -> list[Shown]:
    recipe, metric = results.recipe, results.dev_metric
    found = {str(k): results.dev(recipe.with_k(k), metric) for k in recipe.preset.ks}
    found["all"] = results.dev(ALL_CANDIDATES, metric)
    own = {k: figure for k, figure in found.items() if figure is not None}
    drawn: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "marker": {"color": "--accent"}}
    drawn |= {"x": list(own), "y": [figure.mean for figure in own.values()]}
    drawn |= {"error_y": {"type": "data", "array": [figure.spread for figure in own.values()]}}
    told = f"Dev split, {metric}, a training for each K and seed; all: nothing is filtered. Bars: spread over seeds."
    layout = figure_layout("K", metric)
    layout["xaxis"] |= {"type": "category"}
    plot = Plot("Dev score by K", told, [drawn], layout)
    lines = [Line((k, shown(figure, metric))) for k, figure in own.items()]
    return [plot, _sheet("Dev score by K", ("K", metric), lines, _seeds(results))]


def _sweep_needs(recipe: Recipe) -> list[str]:
    from tuning.config import PRESETS
    from tuning.values import read_file

    name = recipe.preset.name if (PRESETS / f"{recipe.preset.name}.yaml").is_file() else "flan-t5-large"
    values = read_file(name, PRESETS) | recipe.preset.sweep
    values["overrides"] = values.get("overrides", {}) | recipe.asked_changes(URG) | {"data.shards": recipe.shards()}
    values |= {"name": "sweep", "storage": str(recipe.root), "base": recipe.trained_by(URG)}
    return list(recipe.add("sweep", "tuning.sweep", values, recipe.prepare(), alone=True))


def _sweep(results: Results) -> list[Shown]:
    folder = results.recipe.root / "sweep"
    text = (folder / "report.md").read_text(encoding="utf-8")
    return [f"The whole report: {folder / 'report.html'}.", *(line for line in text.splitlines()[2:12] if line)]


def _sheet(title: str, head: Sequence[str], lines: Sequence[Line], *notes: str) -> Sheet:
    return Sheet(title, tuple(head), (Group("", tuple(lines)),), notes=notes)


def _number(value: Any) -> str:
    return NONE if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _seeds(results: Results) -> str:
    count = len(results.recipe.seeds)
    return (
        f"Mean ± standard deviation over {count} seeds." if count > 1 else "One seed: nothing is known of the spread."
    )


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment("Table 1: the data", _table1_needs, _table1),
    "table2": Experiment("Table 2: all systems, all metrics", _table2_needs, _table2),
    "table3": Experiment("Table 3: ablations", _variants(lambda recipe: (URG, *ABLATIONS)), _table3),
    "recipes": Experiment(
        "The preset's recipe and others",
        _variants(lambda recipe: (URG, *recipe.preset.recipes)),
        _recipes(lambda recipe: recipe.preset.recipes),
    ),
    "fig3": Experiment("Figure 3: K", _fig3_needs, _fig3),
    "table5": Experiment("Table 5: noise", _per_seed(Recipe.noise), _table5),
    "table4": Experiment("Tables 4 and 7: speed of ranking", _benchmark("rankers"), _speed),
    "complexity": Experiment("§3.5: complexity", _benchmark("complexity"), _complexity),
    "table6": Experiment(
        "Table 6: human preference", _human, _files("human/*", "Nobody has rated yet. The blinded sheet is in")
    ),
    "table8": Experiment("Table 8: cases", _cases, _files("cases.*", "The cases are in")),
    "sweep": Experiment("The five-parameter sweep", _sweep_needs, _sweep),
    "beyond": Experiment(
        "Beyond the paper: more recipes",
        _variants(lambda recipe: (URG, *recipe.preset.beyond)),
        _recipes(lambda recipe: recipe.preset.beyond),
    ),
}
ON_REQUEST = frozenset({"beyond"})
"""No experiments of the paper: only where they are named."""
ALSO = {"table7": "table4", "s3.5": "complexity"}
"""Other names for the same."""
__all__ = ["ALSO", "BASELINES", "EXPERIMENTS", "ON_REQUEST", "Experiment", "Shown"]
