"""Rank metrics: values worked by hand, brute-force derivations, and the properties that make them honest."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urg.evaluation.rank_metrics import (
    EQUAL_LABELS,
    EQUAL_SCORES,
    FEW_LABELS,
    NO_NUMBER,
    NO_SCORES,
    RANK_METRICS,
    hit_at_1,
    kendall,
    mrr,
    ndcg,
    pearson,
    rank_metrics,
    spearman,
)

NAN = float("nan")
small = st.integers(-4, 4).map(float)  # few values, so that ties are common
rows = st.integers(2, 6).flatmap(lambda n: st.tuples(*[st.lists(small, min_size=n, max_size=n)] * 2))


def test_values_by_hand() -> None:
    scores, labels = [0.1, 0.4, 0.3, 0.2], [1.0, 3.0, 4.0, 2.0]  # ranked: 3, 4, 2, 1
    assert hit_at_1(scores, labels) == 0.0
    assert spearman(scores, labels) == pytest.approx(0.8)  # 1 − 6·(1 + 1) / (4·15)
    assert kendall(scores, labels) == pytest.approx(4 / 6)  # one of six pairs is discordant
    discounts = [1 / math.log2(rank + 1) for rank in (1, 2, 3, 4)]
    got = 2 * discounts[0] + 3 * discounts[1] + 1 * discounts[2]  # gains: label − 1
    assert ndcg(scores, labels) == pytest.approx(got / (3 * discounts[0] + 2 * discounts[1] + 1 * discounts[2]))


def test_mrr_and_pearson_by_hand() -> None:
    assert mrr([0.1, 0.4, 0.3, 0.2], [4.0, 3.0, 1.0, 2.0]) == 1 / 4
    assert mrr([1, 1, 0], [5, 9, 9]) == 1 / 2  # tied scores stand in the order of the row
    assert mrr([3, 2, 1], [0, 7, 7]) == 1 / 2  # the first of the best
    assert pearson([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]) == pytest.approx(7 / math.sqrt(2 * 26))
    assert pearson([1e-9, 2e-9, 3e-9], [2.0, 4.0, 9.0]) == pytest.approx(7 / math.sqrt(2 * 26))  # attention is tiny
    assert pearson([0.5, 0.5 + 1e-12], [1.0, 2.0]) == pytest.approx(1.0)


def test_negative_labels_need_no_special_case() -> None:
    """A log-likelihood label: the gain is shifted by the row's minimum, so NDCG stays in 0..1 and the worst gets 0."""
    scores, labels = [2.0, 1.0], [-9.0, -3.0]
    assert ndcg(scores, labels) == pytest.approx(1 / math.log2(3))
    assert ndcg(labels, labels) == 1.0


def test_ties() -> None:
    assert hit_at_1([1, 1, 0], [5, 9, 1]) == 0.0  # a tie of scores: the first is what the system picks
    assert hit_at_1([1, 1, 0], [9, 5, 1]) == 1.0
    assert hit_at_1([0, 1, 0], [9, 9, 1]) == 1.0  # a tie of labels: either is a best one
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(3 * 2))  # tau-b: (C − D)/√((n0−n1)(n0−n2))
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)  # ranks 1.5, 1.5, 3


@given(rows)
def test_kendall_equals_counting_pairs(row: tuple[list[float], list[float]]) -> None:
    scores, labels = row
    signs = [
        (np.sign(scores[i] - scores[j]), np.sign(labels[i] - labels[j]))
        for i, j in itertools.combinations(range(len(scores)), 2)
    ]
    spread = math.prod(sum(1 for pair in signs if pair[side]) for side in (0, 1))
    value = kendall(scores, labels)
    if not spread:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(sum(s * t for s, t in signs) / math.sqrt(spread))


@settings(deadline=None)
@given(rows)
def test_ndcg_equals_the_mean_over_all_orders_of_ties(row: tuple[list[float], list[float]]) -> None:
    scores, labels = row
    if len(set(labels)) == 1:
        assert math.isnan(ndcg(scores, labels))
        return
    gains = [label - min(labels) for label in labels]

    def dcg(order: tuple[int, ...]) -> float:
        return sum(gains[i] / math.log2(rank + 2) for rank, i in enumerate(order))

    orders = itertools.permutations(range(len(scores)))
    allowed = [o for o in orders if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))]
    ideal = dcg(tuple(sorted(range(len(gains)), key=lambda i: -gains[i])))
    assert ndcg(scores, labels) == pytest.approx(sum(map(dcg, allowed)) / len(allowed) / ideal)


@given(rows, st.randoms(use_true_random=False), st.floats(0.1, 10), st.floats(-50, 50))
def test_order_offset_and_unit_change_nothing(row, random, unit: float, offset: float) -> None:  # type: ignore[no-untyped-def]
    scores, labels = map(np.array, row)
    order = list(range(len(scores)))
    random.shuffle(order)
    for name, metric in RANK_METRICS.items():
        value = metric(scores, labels)
        assert metric(scores, labels * unit + offset) == pytest.approx(value, nan_ok=True), name
        assert metric(scores * unit + offset, labels) == pytest.approx(value, nan_ok=True), name
        if name not in ("hit@1", "mrr") or len(set(scores.tolist())) == len(scores):  # these break ties by position
            assert metric(scores[order], labels[order]) == pytest.approx(value, nan_ok=True), name


@given(rows)
def test_a_candidate_without_label_is_as_if_absent(row: tuple[list[float], list[float]]) -> None:
    scores, labels = row
    for name, metric in RANK_METRICS.items():
        value = metric(scores, labels)
        assert metric([99.0, *scores, NAN], [NAN, *labels, NAN]) == pytest.approx(value, nan_ok=True), name


def test_perfect_and_reversed() -> None:
    labels = [0.3, -2.0, 7.0, 1.0]
    assert [metric(labels, labels) for metric in RANK_METRICS.values()] == pytest.approx([1] * len(RANK_METRICS))
    reverse = [-label for label in labels]
    assert (hit_at_1(reverse, labels), spearman(reverse, labels), kendall(reverse, labels)) == (0.0, -1.0, -1.0)
    assert 0 < ndcg(reverse, labels) < 1


def test_undefined_rows_are_left_out_and_counted() -> None:
    scores = [[1.0, 2.0], [1.0, 2.0], [3.0, 3.0], [1.0, 2.0], None]
    labels = [[1.0, 2.0], [5.0, 5.0], [1.0, 2.0], [NAN, 2.0], [1.0, 2.0]]
    result = rank_metrics(scores, labels)
    common = {EQUAL_LABELS: 1, FEW_LABELS: 1, NO_SCORES: 1}
    flat = {**common, EQUAL_SCORES: 1}
    correlations = {"spearman": flat, "kendall": flat, "pearson": flat}
    assert result.left_out == {"hit@1": common, "mrr": common, "ndcg": common} | correlations
    assert np.isnan(result.values["spearman"]).tolist() == [False, True, True, True, True]
    assert result.means()["spearman"] == pytest.approx(1.0)
    assert result.means()["hit@1"] == 0.5


def test_a_row_with_a_score_that_is_no_number_is_left_out_by_that_reason() -> None:
    scores = [[1.0, NAN], [float("inf"), 1.0], [NAN, 2.0, 1.0], [1.0, 2.0]]
    labels = [[1.0, 2.0], [1.0, 2.0], [NAN, 2.0, 1.0], [1.0, 2.0]]  # the third row's NaN has no label either
    result = rank_metrics(scores, labels)
    assert result.left_out == {metric: {NO_NUMBER: 2} for metric in RANK_METRICS}
    for values in result.values.values():
        assert np.isnan(values).tolist() == [True, True, False, False]


def test_a_metric_that_no_row_defines_has_no_mean() -> None:
    assert rank_metrics([[1.0, 1.0]], [[1.0, 2.0]]).means().keys() == {"hit@1", "mrr", "ndcg"}
    assert rank_metrics([], []).means() == {}


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        ndcg([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no finite score"):
        ndcg([1.0, NAN], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 rows of scores for 1"):
        rank_metrics([[1.0], [2.0]], [[1.0]])
