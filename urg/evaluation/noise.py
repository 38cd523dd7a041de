"""Table 5 of the URG paper: what a fuser loses when bad candidates stand beside good ones. Nothing is trained again.

Base: the two candidates with the best labels. Then the one with the worst label is added, then the two worst; the
paper's "12" and "11,12" of twelve. Δ% = 100 (noisy − base) / |base| of a metric's mean over the same rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.noisy_texts import BASE, VARIANTS, NoisyTexts, usable

if TYPE_CHECKING:
    from urg.evaluation.answering import Load
    from urg.evaluation.sheet import Sheet
    from urg.evaluation.subject import Subject

Floats = NDArray[np.float64]

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
    noise = measure(subject, output, load or load_ensemble)
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


def measure(subject: Subject, output: Path, load: Load) -> Noise:
    """Fuse every variant with every asked fuser, and score the texts. Texts of an earlier run are kept."""
    from urg.evaluation.answer_store import AnswerStore
    from urg.evaluation.progress import Progress
    from urg.evaluation.text_metrics import TextMetrics

    rows, label, config = subject.rows, subject.label, subject.config
    kept_rows = [row for row in rows if usable(row, label)]
    if not kept_rows:
        raise UserError(
            f"no row has a reference and {BASE + 2} candidates with the label {label}, which the experiment needs; "
            "choose another by --label or --split"
        )
    progress = Progress()
    metrics = TextMetrics.of(config, output, progress)
    store = AnswerStore(output, config, kept_rows, label)
    texts, missing = NoisyTexts(rows, subject.ids, label, config, load, progress, store).written()
    references = [row.output for row in kept_rows]
    columns = [own for by in texts.values() for own in by.values()]
    metrics.values([text for own in columns for text in own], references * len(columns))  # all at once
    scored: dict[str, dict[str, dict[str, Floats]]] = {}
    for name, by in texts.items():
        scored[name] = {}
        for variant, own in by.items():
            values = metrics.values(own, references)
            scored[name][variant] = {m: v for m, v in values.items() if not np.isnan(v).all()}
    means = {
        name: {variant: {m: float(np.nanmean(v)) for m, v in values.items()} for variant, values in by.items()}
        for name, by in scored.items()
    }
    return Noise(means, len(kept_rows), len(rows), metrics.missing | missing, _intervals(scored, config))


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
