"""Table 5 of the URG paper: what a fuser loses when bad candidates stand beside good ones. Nothing is trained again.

Base: the two candidates with the best labels. Then the one with the worst label is added, then the two worst; the
paper's "12" and "11,12" of twelve. Δ% = 100 (noisy − base) / |base| of a metric's mean over the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from urg.evaluation.config import EvaluateConfig
from urg.systems.protocol import Answer, Fuser

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.evaluation.answering import Load
    from urg.evaluation.sheet import Sheet

Floats = NDArray[np.float64]

BASE = 2
VARIANTS = {"base": 0, "12": 1, "11,12": 2}  # as the paper names them → how many of the worst are added
METRICS = ("bertscore", "bartscore", "bleurt", "rougeL", "rougeLsum", "bleu")


@dataclass(frozen=True)
class Noise:
    """means: system → variant → metric. rows: how many have enough labelled candidates and a reference, of how many."""

    means: dict[str, dict[str, dict[str, float]]]
    rows: int
    of: int
    missing: dict[str, str]  # metric or system → why it is not there
    intervals: dict[str, dict[str, dict[str, tuple[float, float]]]]  # of Δ%: system → variant → metric → (low, high)

    def change(self, system: str, variant: str, metric: str) -> float | None:
        """Δ% of a metric; None where it was not measured, or its base is 0."""
        base = self.means[system]["base"].get(metric)
        noisy = self.means[system][variant].get(metric)
        return 100 * (noisy - base) / abs(base) if base and noisy is not None else None


def run_noise(config: EvaluateConfig, output: Path, load: Load | None = None) -> Noise:
    """Run the experiment, write noise.json, .md and .tex, print the table. load: makes the ensemble."""
    from urg.evaluation.answering import load_ensemble
    from urg.evaluation.results import write_json, write_sheets
    from urg.evaluation.sheet import plain
    from urg.evaluation.subject import open_subject

    subject = open_subject(config)
    noise = measure(subject.rows, subject.label, subject.config, output, load or load_ensemble)
    changes = {
        system: {v: {m: noise.change(system, v, m) for m in METRICS if m in by["base"]} for v in list(VARIANTS)[1:]}
        for system, by in noise.means.items()
    }
    sheet = table5(noise, subject.provenance.title)
    write_json(output / "noise.json", asdict(noise) | {"change_percent": changes, "title": subject.provenance.title})
    write_sheets(output / "noise", [sheet])
    print(f"\n{plain(sheet)}")
    for name, reason in noise.missing.items():
        print(f"missing: {name} ({reason})")
    print(f"\nresults   {output / 'noise.json'}, noise.md, noise.tex")
    return noise


def measure(rows: Sequence[TokenizedExample], label: str, config: EvaluateConfig, output: Path, load: Load) -> Noise:
    """Fuse every variant with every asked fuser, and score the texts. Texts of an earlier run are kept."""
    from urg.evaluation.answer_store import Answered, AnswerStore
    from urg.evaluation.progress import Progress
    from urg.evaluation.text_metrics import TextMetrics

    usable = [(row, gold) for row in rows if (gold := _gold(row, label)) is not None and row.output.strip()]
    if not usable:
        raise UserError(
            f"no row has a reference and {BASE + 2} candidates with the label {label}, which the experiment needs; "
            "choose another by --label or --split"
        )
    kept_rows = [row for row, _ in usable]
    progress = Progress()
    metrics = TextMetrics.of(config, output, progress)
    store = AnswerStore(output, config, kept_rows, label)
    fusers, missing = _fusers(rows, label, config, load, progress)
    scored: dict[str, dict[str, dict[str, Floats]]] = {}
    for name, fuser in fusers.items():
        scored[name] = {}
        for variant, added in VARIANTS.items():
            kept = store.load(f"noise:{label}:{name}:{variant}")
            if kept is None:
                chosen = [_only(row, [*gold[:BASE], *gold[len(gold) - added :]]) for row, gold in usable]
                texts = fuse_all(name, fuser, chosen, config)
                kept = Answered(f"noise:{label}:{name}:{variant}", "fuser", [Answer(text) for text in texts])
                store.save(kept)
            values = metrics.values([a.text if a else None for a in kept.answers], [row.output for row in kept_rows])
            scored[name][variant] = {m: v for m, v in values.items() if not np.isnan(v).all()}
    means = {
        name: {variant: {m: float(np.nanmean(v)) for m, v in values.items()} for variant, values in by.items()}
        for name, by in scored.items()
    }
    return Noise(means, len(usable), len(rows), metrics.missing | missing, _intervals(scored, config))


def _intervals(
    scored: dict[str, dict[str, dict[str, Floats]]], config: EvaluateConfig
) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Bootstrap intervals of every Δ%, from the same resamples of the rows."""
    asked, found = config.statistics, {}
    for name, by in scored.items() if asked.resamples else ():
        found[name] = {variant: dict[str, tuple[float, float]]() for variant in list(VARIANTS)[1:]}
        for variant, intervals in found[name].items():
            for metric in by["base"].keys() & by[variant].keys():
                columns = by["base"][metric], by[variant][metric]
                interval = change_interval(*columns, asked.resamples, asked.confidence, config.seed)
                if interval is not None:
                    intervals[metric] = interval
    return found


def change_interval(
    base_R: Floats, noisy_R: Floats, resamples: int, confidence: float, seed: int
) -> tuple[float, float] | None:
    """Percentile interval of 100 (noisy mean − base mean) / |base mean| over the rows that have both.

    None where a resample has the base 0, of which there are no percents.
    """
    from urg.evaluation.statistics import resampled

    both = ~np.isnan(base_R - noisy_R)
    parts = []
    for weights_SR in resampled(int(both.sum()), resamples, seed):
        base_S, noisy_S = weights_SR @ base_R[both], weights_SR @ noisy_R[both]
        if not base_S.all():
            return None
        parts.append(100 * (noisy_S - base_S) / np.abs(base_S))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    return float(low), float(high)


def _gold(row: TokenizedExample, label: str) -> list[int] | None:
    """The labelled candidates, best first (ties by index); None where there are too few."""
    labels = np.asarray(row.scores.get(label, np.full(len(row.texts), np.nan)), dtype=np.float64)
    order = [int(i) for i in np.argsort(-labels, kind="stable") if not np.isnan(labels[i])]
    return order if len(order) >= BASE + 2 else None


def _only(row: TokenizedExample, chosen: Sequence[int]) -> TokenizedExample:
    """The row with the candidates `chosen`, in that order."""
    picked: dict[str, Any] = {
        key: tuple(getattr(row, key)[i] for i in chosen) for key in ("models", "texts", "response_ids")
    }
    scores = {name: np.asarray(values)[list(chosen)] for name, values in row.scores.items()}
    return replace(row, **picked, scores=scores)


def _fusers(
    rows: Sequence[TokenizedExample], label: str, config: EvaluateConfig, load: Load, progress: Any
) -> tuple[dict[str, Fuser], dict[str, str]]:
    """The fuser of each asked system that has one, each once; and why others cannot run."""
    from urg.evaluation.answering import INSTANT, asked_systems, make_setup
    from urg.systems import SYSTEMS, SystemUnavailable

    models = sorted({name for row in rows for name in row.models})
    _, asked = asked_systems(config.systems, models)
    names = [name for name in asked if name not in INSTANT]
    setup = make_setup(config, label, models, names, load, progress, [row.id for row in rows])
    found: dict[str, Fuser] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            fuser = getattr(SYSTEMS[name](setup), "fuser", None)
        except SystemUnavailable as reason:
            missing[name] = str(reason)
            continue
        if fuser is not None and not any(fuser is known for known in found.values()):
            found[name] = fuser
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise UserError(f"none of the systems writes texts ({reasons}); name a model by --model")
    return found, missing


def fuse_all(name: str, fuser: Fuser, rows: Sequence[TokenizedExample], config: EvaluateConfig) -> list[str]:
    """The text that a fuser writes from all candidates of each row; all rows have as many. They come best first."""
    count = len(rows[0].texts)
    ensemble = getattr(fuser, "ensemble", None)  # URG ranks and fuses in one pass, of any number
    if ensemble is not None:
        from urg.ensemble import Query

        queries = [Query(row.instruction, tuple(row.texts), row.input) for row in rows]
        options = {"num_beams": config.num_beams, "max_new_tokens": config.max_new_tokens}
        return [fused.text for fused in ensemble.rank_and_fuse_batch(queries, k=count, **options)]
    falling = np.arange(count, 0, -1, dtype=np.float64)
    with _fusing(name, fuser, count):
        return [fusion.text for fusion in fuser.fuse(rows, [falling] * len(rows))]


@contextmanager
def _fusing(name: str, fuser: Fuser, count: int) -> Iterator[None]:
    """Let a fuser of the K best take `count`, for as long as the block lasts."""
    model: Any = getattr(fuser, "model", None)
    settings = getattr(model, "settings", None)
    if not hasattr(settings, "k"):
        raise UserError(f"{name} does not say how many candidates it fuses, so its noise cannot be measured")
    model.settings = replace(settings, k=count)  # type: ignore[type-var]
    try:
        yield
    finally:
        model.settings = settings


def _cell(noise: Noise, system: str, variant: str, metric: str) -> str:
    change = noise.change(system, variant, metric)
    if change is None:
        return "–"
    interval = noise.intervals.get(system, {}).get(variant, {}).get(metric)
    return f"{change:+.2f}%" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def table5(noise: Noise, where: str) -> Sheet:
    """Table 5, ours beside what was published."""
    from urg.evaluation.paper_tables import published
    from urg.evaluation.sheet import NONE, Group, Line, Sheet

    source = published()["urg"]
    printed = source["table5"]
    ours = [m for m in METRICS if any(m in by["base"] for by in noise.means.values())]
    left = list(printed["rows"])
    lines = []
    for system in noise.means:
        for variant in list(VARIANTS)[1:]:
            row = next((r for r in left if system in r["ours"] and r["added"] == variant), None)
            cells = [_cell(noise, system, variant, metric) for metric in ours]
            values = [NONE] * 4 if row is None else [f"{value:+.2f}%" for value in row["values"]]
            lines.append(Line((system, variant, *cells, row["name"] if row else NONE, *values)))
            left = [other for other in left if other is not row]
    lines += [
        Line((NONE, row["added"], *[NONE] * len(ours), row["name"], *(f"{value:+.2f}%" for value in row["values"])))
        for row in left
    ]
    return Sheet(
        f"Table 5, change by noise: {where}",
        ("fuser", "added", *ours, "published as", *printed["columns"]),
        (Group("", tuple(lines)),),
        spans=(("", 2), ("ours: Δ%", len(ours)), ("published: Δ%", 1 + len(printed["columns"]))),
        notes=(
            f"ours: {noise.rows} of {noise.of} rows, those with a reference and {BASE + 2} labelled candidates.",
            "added: gold ranks of the candidates beside the gold two best; 12 is the last, 11 the one before it.",
            f"published: {source['source']}.",
        ),
    )
