"""The report's figures as plain Plotly JSON: scores by model, who is picked and who is best, and calibration.

Every text from the data is HTML-escaped here, because Plotly reads a subset of HTML in labels. A colour that begins
with -- is a variable of the report's style sheet.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.page import LEGEND, Figure, bar, figure_layout, short_name

if TYPE_CHECKING:
    from urg.evaluation.comparison import Comparison

Floats = NDArray[np.float64]
BINS = 10


@dataclass(frozen=True)
class Scored:
    """One line a candidate of the rows that URG ranked, [C] each."""

    row: NDArray[np.int64]
    model: list[str]
    share: Floats  # its score over the mean score of its row: 1 is an even share of the attention
    rank: NDArray[np.int64]  # 1 = URG's first
    label: Floats  # NaN = missing
    ideal: NDArray[np.int64]  # its rank by label among the labelled, 1 = best; 0 where it has none


def scored_candidates(comparison: Comparison) -> Scored | None:
    """What URG said of every candidate; None where URG did not run."""
    result = comparison.get("urg_rank")
    if result is None:
        return None
    columns: list[list[Any]] = [[] for _ in range(6)]
    for index, (row, answer) in enumerate(zip(comparison.rows, result.answers, strict=True)):
        if answer is None or answer.scores is None or not np.isfinite(answer.scores).all():
            continue
        labels = np.asarray(row.scores.get(comparison.label, np.full(len(row.texts), np.nan)), dtype=np.float64)
        shares = answer.scores / answer.scores.mean()
        ideal = np.where(np.isnan(labels), 0, ranks(np.where(np.isnan(labels), -np.inf, labels)))
        parts = ([index] * len(labels), row.models, shares, ranks(answer.scores), labels, ideal)
        for column, part in zip(columns, parts, strict=True):
            column.extend(part)
    numbers = [np.array(columns[i], dtype=kind) for i, kind in ((0, int), (2, float), (3, int), (4, float), (5, int))]
    return Scored(numbers[0], [str(model) for model in columns[1]], *numbers[1:])


def ranks(scores: Floats) -> NDArray[np.int64]:
    """Rank of each score [N], 1 = highest; ties by position."""
    order = np.argsort(-scores, kind="stable")
    found = np.empty(len(scores), dtype=np.int64)
    found[order] = np.arange(1, len(scores) + 1)
    return found


def figures(comparison: Comparison) -> list[Figure]:
    """Every figure that the results allow; none where URG did not run."""
    scored = scored_candidates(comparison)
    if scored is None or not len(scored.share):
        return []
    found = [_scores_by_model(scored), _picked_and_best(comparison, scored)]
    if not np.isnan(scored.label).all():
        found += [_label_by_rank(comparison, scored), _label_by_share(comparison, scored)]
    return found


def _scores_by_model(scored: Scored) -> Figure:
    by_model = {name: scored.share[[model == name for model in scored.model]] for name in sorted(set(scored.model))}
    names = sorted(by_model, key=lambda name: float(np.median(by_model[name])))
    five = np.array([np.quantile(by_model[name], [0.05, 0.25, 0.5, 0.75, 0.95]) for name in names])
    box: dict[str, Any] = {
        "type": "box",
        "orientation": "h",
        "y": [short_name(name) for name in names],
        "hoverinfo": "x+y",
    }
    box |= dict(zip(("lowerfence", "q1", "median", "q3", "upperfence"), five.T.tolist(), strict=True))
    box |= {"line": {"color": "--accent", "width": 1.5}, "fillcolor": "rgba(80,130,230,0.25)"}
    return Figure(
        "URG's scores by model",
        "Score of a candidate over its row's mean score, so 1 is an even share. "
        "Box: middle half; whiskers: 5th to 95th percentile.",
        [box],
        figure_layout("score ÷ row mean", "", height=110 + 32 * len(names), left=True),
    )


def _picked_and_best(comparison: Comparison, scored: Scored) -> Figure:
    rows = len(set(scored.row.tolist()))
    labelled = len(set(scored.row[scored.ideal > 0].tolist()))
    picked, best = dict.fromkeys(scored.model, 0.0), dict.fromkeys(scored.model, 0.0)
    for name, rank in zip(scored.model, scored.rank, strict=True):
        picked[name] += 100 * float(rank == 1) / rows
    for name, share in zip(scored.model, _best_shares(scored), strict=True):
        best[name] += 100 * share / max(labelled, 1)
    names = sorted(picked, key=lambda name: (best[name], picked[name]))
    labels = [short_name(name) for name in names]
    bars = [
        bar("best by label (ties shared)", labels, [best[name] for name in names], "--second"),
        bar("picked by URG", labels, [picked[name] for name in names], "--accent"),
    ]
    return Figure(
        "Who is picked, who is best",
        f"Percent of rows in which URG puts a model first, and in which it has the best {comparison.label}.",
        bars if labelled else bars[1:],
        figure_layout("% of rows", "", height=110 + 32 * len(names), left=True) | {"legend": LEGEND},
    )


def _best_shares(scored: Scored) -> Floats:
    """1 for the candidate with the row's best label, 1/n for each of n that tie, 0 for others."""
    shares = np.zeros(len(scored.label))
    starts = np.flatnonzero(np.r_[True, np.diff(scored.row) != 0])
    for start, end in zip(starts, [*starts[1:], len(shares)], strict=True):
        labels = scored.label[start:end]
        if not np.isnan(labels).all():
            is_best = labels == np.nanmax(labels)
            shares[start:end] = is_best / is_best.sum()
    return shares


def _label_by_rank(comparison: Comparison, scored: Scored) -> Figure:
    has_label = ~np.isnan(scored.label)
    mean = float(scored.label[has_label].mean())
    deepest = int(scored.rank.max())
    lines = []
    for name, place, colour, dash in (
        ("URG's order", scored.rank, "--accent", "solid"),
        ("ideal order", scored.ideal, "--third", "dot"),
    ):
        means = _means([scored.label[has_label & (place == rank)] for rank in range(1, deepest + 1)])
        lines.append(_line(name, list(range(1, deepest + 1)), means, colour, dash))
    lines.append(_line("any order", [1, deepest], [mean, mean], "--soft", "dash", markers=False))
    return Figure(
        "Mean label at each rank",
        f"Mean {comparison.label} of the candidates that URG puts first, second, …: "
        "the steeper and the nearer to the ideal, the better.",
        lines,
        figure_layout("rank", html.escape(comparison.label)) | {"legend": LEGEND},
    )


def _label_by_share(comparison: Comparison, scored: Scored) -> Figure:
    has_label = ~np.isnan(scored.label)
    order = np.argsort(scored.share[has_label], kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    labels = [scored.label[has_label][members] for members in bins]
    shares = _means([scored.share[has_label][members] for members in bins])
    points = _line("mean label", shares, _means(labels), "--accent", "solid")
    errors = [1.96 * float(group.std(ddof=1)) / len(group) ** 0.5 if len(group) > 1 else 0.0 for group in labels]
    points["error_y"] = {"type": "data", "array": errors, "color": "--soft", "thickness": 1}
    return Figure(
        "Calibration: label by URG score",
        f"All candidates in ten groups of equal size by score; mean {comparison.label} of each, ± 1.96 standard errors "
        "(candidates taken as independent).",
        [points],
        figure_layout("score ÷ row mean, averaged over the group", html.escape(comparison.label)),
    )


def _means(groups: Sequence[Floats]) -> list[float | None]:
    return [float(group.mean()) if len(group) else None for group in groups]


def _line(
    name: str, x: Sequence[float | None], y: Sequence[float | None], colour: str, dash: str, markers: bool = True
) -> dict[str, Any]:
    mode = "lines+markers" if markers else "lines"
    line = {"color": colour, "dash": dash, "width": 2}
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y, "line": line}
