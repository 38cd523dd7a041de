"""How well the scores of one row's candidates agree with their labels: hit@1, MRR, NDCG, Spearman, Kendall, Pearson.

Every function takes scores [N] and labels [N], both higher = better, and returns a float, or NaN where the row does not
define the metric. Rules, the same for all:

- A candidate whose label is missing (NaN) is left out of its row; a score is needed only for the others, and where one
  of these has none that is a number, the row has no order to judge: undefined.
- With fewer than two labelled candidates, or all labels equal, there is nothing to rank: undefined.
- With all scores equal, a correlation is undefined; hit@1, MRR and NDCG are not, for something is still picked.

Undefined rows are left out of the mean and counted by reason, never taken for 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FEW_LABELS = "fewer than 2 candidates have the label"
EQUAL_LABELS = "all labels are equal"
EQUAL_SCORES = "all scores are equal"
NO_SCORES = "the system gave the row no scores"
NO_NUMBER = "the system's score of a candidate with a label is no number"


def hit_at_1(scores: ArrayLike, labels: ArrayLike) -> float:
    """1.0 if the top-scored labelled candidate (ties: the first, as URG picks) has the row's best label, else 0.0."""
    scores_N, labels_N = _labelled(scores, labels)
    if _undefined(scores_N, labels_N, needs_spread=False):
        return float("nan")
    return float(labels_N[np.argmax(scores_N)] == labels_N.max())


def mrr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Reciprocal rank, 0..1, of a candidate with the row's best label: the first of them in the order of the scores.

    Equal scores stand in the order of the row, as URG picks.
    """
    scores_N, labels_N = _labelled(scores, labels)
    if _undefined(scores_N, labels_N, needs_spread=False):
        return float("nan")
    ordered_N = labels_N[np.argsort(-scores_N, kind="stable")]
    return 1.0 / (1 + int(np.argmax(ordered_N == labels_N.max())))


def ndcg(scores: ArrayLike, labels: ArrayLike) -> float:
    """Normalised discounted cumulative gain over the whole list, 0..1. Source: Järvelin & Kekäläinen 2002.

    gain = label − the row's smallest label: linear, so that log-scale and negative labels work and neither its
    offset nor its unit changes the value. discount = 1/log2(1 + rank). Candidates of equal score share the mean
    discount of the ranks they span: the expectation over the orders of a tie (McSherry & Najork 2008).
    """
    scores_N, labels_N = _labelled(scores, labels)
    if _undefined(scores_N, labels_N, needs_spread=False):
        return float("nan")
    gains_N = labels_N - labels_N.min()
    discounts_N = 1.0 / np.log2(np.arange(2, len(gains_N) + 2))
    _, tie_N = np.unique(-scores_N, return_inverse=True)  # 0 = the group with the best score
    sizes = np.bincount(tie_N)
    ends = np.cumsum(sizes)
    shared = np.array([discounts_N[end - size : end].mean() for size, end in zip(sizes, ends, strict=True)])
    return float(gains_N @ shared[tie_N] / (np.sort(gains_N)[::-1] @ discounts_N))


def spearman(scores: ArrayLike, labels: ArrayLike) -> float:
    """Spearman's rank correlation, −1..1; ties get their mean rank."""
    scores_N, labels_N = _labelled(scores, labels)
    if _undefined(scores_N, labels_N, needs_spread=True):
        return float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr(scores_N, labels_N).statistic)


def kendall(scores: ArrayLike, labels: ArrayLike) -> float:
    """Kendall's tau-b, −1..1, which corrects for ties."""
    scores_N, labels_N = _labelled(scores, labels)
    if _undefined(scores_N, labels_N, needs_spread=True):
        return float("nan")
    from scipy.stats import kendalltau

    return float(kendalltau(scores_N, labels_N, variant="b").statistic)


def pearson(scores: ArrayLike, labels: ArrayLike) -> float:
    """Pearson's correlation of the values themselves, −1..1."""
    scores_N, labels_N = _labelled(scores, labels)
    if _undefined(scores_N, labels_N, needs_spread=True):
        return float("nan")
    from scipy.stats import pearsonr

    # Centred and scaled first: the values of a softmax may differ in the ninth digit, and scipy then warns.
    sides = [(side - side.mean()) / np.abs(side - side.mean()).max() for side in (scores_N, labels_N)]
    return float(pearsonr(*sides).statistic)


RANK_METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "hit@1": hit_at_1,
    "mrr": mrr,
    "ndcg": ndcg,
    "spearman": spearman,
    "kendall": kendall,
    "pearson": pearson,
}
CORRELATIONS = frozenset({"spearman", "kendall", "pearson"})  # undefined also where all scores are equal


@dataclass(frozen=True)
class RankScores:
    """The rank metrics of a split: `values[metric]` [R], NaN = undefined; `left_out` counts those rows by reason."""

    values: dict[str, Floats]
    left_out: dict[str, dict[str, int]]

    def means(self) -> dict[str, float]:
        """The mean of each metric over the rows that define it; a metric that no row defines is absent."""
        kept = {metric: values[~np.isnan(values)] for metric, values in self.values.items()}
        return {metric: float(values.mean()) for metric, values in kept.items() if len(values)}


def rank_metrics(scores: Sequence[ArrayLike | None], labels: Sequence[ArrayLike]) -> RankScores:
    """Every rank metric of every row. scores[r]: [N_r], or None where the system scored nothing; labels[r]: [N_r]."""
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} rows of scores for {len(labels)} rows of labels")
    values = {metric: np.full(len(labels), np.nan) for metric in RANK_METRICS}
    reasons: dict[str, Counter[str]] = {metric: Counter() for metric in RANK_METRICS}
    for row, (row_scores, row_labels) in enumerate(zip(scores, labels, strict=True)):
        for metric, function in RANK_METRICS.items():
            reason = why_undefined(row_scores, row_labels, metric)
            if reason is None and row_scores is not None:
                values[metric][row] = function(row_scores, row_labels)
            elif reason is not None:
                reasons[metric][reason] += 1
    return RankScores(values, {metric: dict(count) for metric, count in reasons.items()})


def why_undefined(scores: ArrayLike | None, labels: ArrayLike, metric: str) -> str | None:
    """Why `metric` is undefined for a row, or None where it is defined."""
    if scores is None:
        return NO_SCORES
    scores_N, labels_N = _with_label(scores, labels)
    if not np.isfinite(scores_N).all():
        return NO_NUMBER
    return _undefined(scores_N, labels_N, needs_spread=metric in CORRELATIONS)


def _labelled(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Scores and labels of the candidates that have a label. ValueError where shapes differ or a score is missing."""
    scores_N, labels_N = _with_label(scores, labels)
    if not np.isfinite(scores_N).all():
        raise ValueError(f"a labelled candidate has no finite score: {scores_N.tolist()}")
    return scores_N, labels_N


def _with_label(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Scores and labels of the candidates that have a label. ValueError where shapes differ."""
    scores_N, labels_N = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if scores_N.shape != labels_N.shape or scores_N.ndim != 1:
        raise ValueError(f"scores {scores_N.shape} and labels {labels_N.shape} must be two lists of one length")
    has_label = ~np.isnan(labels_N)
    return scores_N[has_label], labels_N[has_label]


def _undefined(scores_N: Floats, labels_N: Floats, needs_spread: bool) -> str | None:
    if len(labels_N) < 2:
        return FEW_LABELS
    if (labels_N == labels_N[0]).all():
        return EQUAL_LABELS
    if needs_spread and (scores_N == scores_N[0]).all():
        return EQUAL_SCORES
    return None
