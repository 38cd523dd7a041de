"""The scores of one split: each model's mean by label, how often it is best, and how far labels agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import Example

Floats = NDArray[np.float64]
VERDICTS = "cmp_results"
"""The label that a judge's comparisons give: wins over the row's other candidates, a tie being half a win."""
_POINTS = {"A is better": (1.0, 0.0), "B is better": (0.0, 1.0), "Same good": (0.5, 0.5), "Same bad": (0.5, 0.5)}


@dataclass
class Cell:
    """One model under one label. zeros: exact 0.0 of a log-scale score, which count as missing."""

    values: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    best: float = 0.0
    zeros: int = 0

    def add(self, value: float) -> None:
        """Count one value."""
        self.values += 1
        self.total += value
        self.squares += value * value
        self.low, self.high = min(self.low, value), max(self.high, value)


@dataclass
class Agreement:
    """Sums over the rows whose candidates all have the same set of L labels, [L, L] each.

    moments: of pooled candidates (count, sum, products). ranks: sum over rows of the correlation of ranks, and rows
    where both labels differ among candidates.
    """

    count: int
    total: Floats
    products: Floats
    spearman: Floats
    rows: Floats

    @classmethod
    def empty(cls, labels: int) -> Agreement:
        """Nothing counted yet."""
        square = np.zeros((labels, labels))
        return cls(0, np.zeros(labels), square.copy(), square.copy(), square.copy())

    def add(self, scores_LN: Floats) -> None:
        """Count the candidates of one row."""
        from scipy.stats import rankdata

        self.count += scores_LN.shape[1]
        self.total += scores_LN.sum(axis=1)
        self.products += scores_LN @ scores_LN.T
        ranks_LN = rankdata(scores_LN, axis=1)
        ranks_LN -= ranks_LN.mean(axis=1, keepdims=True)
        length_L = np.sqrt((ranks_LN**2).sum(axis=1))
        norm_LL = np.outer(length_L, length_L)
        defined = norm_LL > 0
        self.spearman += np.divide(ranks_LN @ ranks_LN.T, norm_LL, out=np.zeros_like(norm_LL), where=defined)
        self.rows += defined


@dataclass
class ScoreTally:
    """All scores of one split."""

    cells: dict[str, dict[str, Cell]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Cell)))
    models: Counter[str] = field(default_factory=Counter)
    oracle: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    verdicts: Counter[str] = field(default_factory=Counter)
    agreements: dict[tuple[str, ...], Agreement] = field(default_factory=dict)

    def add(self, rows: Sequence[Example], log_scale: frozenset[str]) -> None:
        """Count the scores of some rows. log_scale: the labels of which an exact 0.0 is missing."""
        for row in rows:
            self.models.update(candidate.model for candidate in row.candidates)
            by_label = self._present(row, log_scale)
            if wins := _wins(row):
                by_label[VERDICTS] = wins
            self.verdicts.update((row.cmp_results or {}).values())
            for label, values in by_label.items():
                self._add_label(label, values, row)
            complete = tuple(sorted(name for name, of in by_label.items() if len(of) == len(row.candidates) > 1))
            if len(complete) > 1:
                scores = np.array([[by_label[name][i] for i in range(len(row.candidates))] for name in complete])
                self.agreements.setdefault(complete, Agreement.empty(len(complete))).add(scores)

    def _present(self, row: Example, log_scale: frozenset[str]) -> dict[str, dict[int, float]]:
        """By label, by candidate: the scores that are not missing."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for index, candidate in enumerate(row.candidates):
            for name, value in candidate.scores.items():
                if value == 0.0 and name in log_scale:
                    self.cells[name][candidate.model].zeros += 1
                else:
                    found[name][index] = value
        return found

    def _add_label(self, label: str, values: dict[int, float], row: Example) -> None:
        """One label of one row; where several candidates are best, each has its share."""
        cells = self.cells[label]
        top = max(values.values())
        best = [index for index, value in values.items() if value == top]
        for index, value in values.items():
            cells[row.candidates[index].model].add(value)
        for index in best:
            cells[row.candidates[index].model].best += 1 / len(best)
        self.oracle[label][0] += top
        self.oracle[label][1] += 1

    def document(self) -> dict[str, Any]:
        """models, labels, correlation and verdicts as JSON values."""
        return {
            "models": dict(sorted(self.models.items())),
            "labels": {label: self._label(label) for label in sorted(self.cells)},
            "correlation": self._correlation(),
            "verdicts": dict(sorted(self.verdicts.items())),
        }

    def _label(self, label: str) -> dict[str, Any]:
        cells = self.cells[label]
        total, rows = self.oracle[label]
        values, zeros = sum(cell.values for cell in cells.values()), sum(cell.zeros for cell in cells.values())
        return {
            "rows": int(rows),
            "values": values,
            "zeros_taken_as_missing": zeros,
            "missing": sum(self.models.values()) - values,
            "oracle_mean": total / rows if rows else None,
            "models": {model: _cell(cells[model], int(rows)) for model in sorted(cells)},
        }

    def _correlation(self) -> dict[str, dict[str, Any]]:
        """For each pair "a,b" of labels, over rows where every candidate has both."""
        pairs: dict[tuple[str, str], list[Floats]] = defaultdict(list)
        for labels, sums in self.agreements.items():
            for i, first in enumerate(labels):
                for j in range(i + 1, len(labels)):
                    pairs[first, labels[j]].append(_pair(sums, i, j))
        return {f"{a},{b}": _correlated(np.sum(parts, axis=0)) for (a, b), parts in sorted(pairs.items())}


def _wins(row: Example) -> dict[int, float]:
    """By candidate, its wins in the judge's comparisons; none for a model that was not compared."""
    points: dict[str, float] = {}
    for pair, verdict in (row.cmp_results or {}).items():
        names = pair.split(",")
        if len(names) == 2 and verdict in _POINTS:
            for name, won in zip(names, _POINTS[verdict], strict=True):
                points[name] = points.get(name, 0.0) + won
    return {i: points[each.model] for i, each in enumerate(row.candidates) if each.model in points}


def _cell(cell: Cell, rows: int) -> dict[str, Any]:
    """One model under one label; no mean where it has no value."""
    counts = {"values": cell.values, "zeros": cell.zeros}
    if not cell.values:
        return counts
    mean = cell.total / cell.values
    spread = max(0.0, cell.squares / cell.values - mean**2) ** 0.5
    told = {"mean": mean, "std": spread, "min": cell.low, "max": cell.high, "best_share": cell.best / rows}
    return counts | told | {"mean_with_zeros": cell.total / (cell.values + cell.zeros)}


def _pair(sums: Agreement, i: int, j: int) -> Floats:
    """Count, two sums, two sums of squares, sum of products; sum of rank correlations, rows: in one array."""
    square = sums.products
    moments = [sums.count, sums.total[i], sums.total[j], square[i, i], square[j, j], square[i, j]]
    return np.array([*moments, sums.spearman[i, j], sums.rows[i, j]])


def _correlated(pair: Floats) -> dict[str, Any]:
    count, x, y, xx, yy, xy, spearman, rows = pair.tolist()
    spread = (xx - x * x / count) * (yy - y * y / count)
    return {
        "candidates": int(count),
        "rows": int(rows),
        "pearson": (xy - x * y / count) / spread**0.5 if spread > 1e-12 * max(xx * yy, 1e-300) else None,
        "spearman": spearman / rows if rows else None,
    }
