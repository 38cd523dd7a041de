"""Intervals and tests: reference values of scipy, coverage, and the properties of pairing and of Holm's correction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.urg.made_up import random_rows
from urg.evaluation.comparison import Comparison, Result
from urg.evaluation.config import StatisticsConfig
from urg.evaluation.statistics import (
    bootstrap_intervals,
    bootstrap_p,
    holm,
    named_pair,
    paired_tests,
    permutation_p,
    sentences,
    statistics,
)
from urg.systems.protocol import Kind

KINDS: dict[str, Kind] = {
    "model-0": "model", "model-1": "model", "gpt": "closed", "random": "floor", "pair_ranker": "ranker",
    "urg_rank": "ranker", "llm_blender": "fuser", "urg": "fuser", "oracle": "ceiling", "oracle_rougeL": "ceiling",
}  # fmt: skip
CLOSE = StatisticsConfig(resamples=0, trials=2000)


def comparison(kinds: dict[str, Kind], rows: int = 60, metric: str = "rougeL") -> Comparison:
    """Systems that differ a little; of two neighbours the later one is better, in most rows."""
    random, results = np.random.default_rng(5), []
    for place, (name, kind) in enumerate(kinds.items()):
        values = {metric: place / 20 + random.normal(0, 0.05, rows)}
        results.append(Result(name, kind, [None] * rows, values, {metric: float(values[metric].mean())}, {}, {}))
    return Comparison(random_rows(rows), "quality", tuple(results), {})


def test_intervals_equal_scipys_bootstrap_and_a_missing_value_takes_no_part() -> None:
    random = np.random.default_rng(1)
    values = np.stack([random.normal(2, 1, 150), random.exponential(1, 150)], axis=1)
    low, high = bootstrap_intervals(values, 4000, 0.9, seed=0)
    for column in range(2):
        reference = scipy.stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=3
        ).confidence_interval
        assert (low[column], high[column]) == pytest.approx(reference, abs=0.02)
    sparse = np.concatenate([values, np.full((50, 2), np.nan)])
    assert bootstrap_intervals(sparse, 4000, 0.9, 0)[0] == pytest.approx(low, abs=0.03)
    constant = bootstrap_intervals(np.full((7, 1), 0.3), 100, 0.95, 0)
    assert constant[0] == pytest.approx([0.3])
    assert constant[1] == pytest.approx([0.3])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, size=(60, 400))  # 400 experiments of 60 rows
    low, high = bootstrap_intervals(values, 600, 0.9, seed=1)
    assert 0.84 <= float(((low <= 5.0) & (high >= 5.0)).mean()) <= 0.94


def test_permutation_equals_scipys() -> None:
    random = np.random.default_rng(2)
    differences = random.normal(0.15, 1, size=(40, 3))
    ours = permutation_p(differences, 20000, seed=0)
    for column in range(3):
        reference = scipy.stats.permutation_test(
            (differences[:, column],), np.mean, permutation_type="samples", n_resamples=20000, rng=1
        ).pvalue
        assert ours[column] == pytest.approx(reference, abs=0.015)


def test_exact_permutations_by_hand() -> None:
    """Two rows of differences 1, 1: of the four flips two are as extreme."""
    assert permutation_p(np.array([[1.0], [1.0]]), 40000, 0)[0] == pytest.approx(0.5, abs=0.01)
    assert permutation_p(np.zeros((5, 1)), 100, 0)[0] == 1.0  # never different


@pytest.mark.parametrize("p_of", [permutation_p, bootstrap_p])
def test_p_values_are_uniform_where_there_is_no_difference_and_small_where_there_is(p_of) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(3)
    none = p_of(random.normal(0, 1, size=(50, 400)), 500, 0)
    assert 0.02 <= float((none < 0.05).mean()) <= 0.09
    shifted = p_of(random.normal(1, 1, size=(50, 20)), 500, 0)
    assert shifted.max() < 0.05
    assert p_of(np.full((50, 1), 1.0) + random.normal(0, 0.1, (50, 1)), 500, 0)[0] == pytest.approx(1 / 501)


def test_seeded_and_paired_by_row() -> None:
    random = np.random.default_rng(4)
    hard = random.normal(0, 5, 80)  # rows differ much, the systems by little, but always
    values = {"a": hard + 0.2, "b": hard + random.normal(0, 0.05, 80), "c": np.full(80, np.nan)}
    (found,) = paired_tests(values, [("a", "b"), ("a", "c")], "permutation", 1000, 7)
    assert (found.first, found.second, found.rows) == ("a", "b", 80)
    assert found.difference == pytest.approx(0.2, abs=0.02)
    assert found.p < 0.01
    assert [found] == paired_tests(values, [("a", "b")], "permutation", 1000, 7)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979's steps


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_and_keeps_the_order(p: list[float]) -> None:
    raw = np.array(p)
    corrected = holm(raw)
    assert (corrected >= raw).all()
    assert corrected.max() <= 1
    order = np.argsort(raw, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()
    assert corrected[order[0]] == min(1.0, raw.min() * len(p))


def test_by_default_urgs_two_systems_are_held_against_the_others_and_the_method_says_so() -> None:
    found = statistics(comparison(KINDS), CLOSE, 0)
    pairs = [(test.first, test.second) for test in found.tests["rougeL"]]
    picks = ["model-0", "model-1", "random", "pair_ranker", "oracle"]
    texts = ["gpt", "llm_blender", "urg_rank"]
    assert sorted(pairs) == sorted([("urg_rank", name) for name in picks] + [("urg", name) for name in picks + texts])
    assert found.method.endswith(
        "Holm over the pairs that have the metric, of urg_rank with each other system that picks a candidate and of "
        "urg with each other system"
    )
    ranks = statistics(comparison({name: kind for name, kind in KINDS.items() if name != "urg"}), CLOSE, 0)
    assert {test.first for test in ranks.tests["rougeL"]} == {"urg_rank"}
    assert "urg with" not in ranks.method


def test_all_pairs_where_they_are_asked_for_or_urg_is_not_there() -> None:
    plain = len(KINDS) - 1  # the oracle of a single metric takes no part
    found = statistics(comparison(KINDS), replace(CLOSE, pairs="all"), 0)
    assert len(found.tests["rougeL"]) == plain * (plain - 1) / 2
    assert found.method.endswith("of every two systems")
    others: dict[str, Kind] = {name: kind for name, kind in KINDS.items() if not name.startswith("urg")}
    found = statistics(comparison(others), CLOSE, 0)
    assert len(found.tests["rougeL"]) == (plain - 2) * (plain - 3) / 2
    assert found.method.endswith("of every two systems")
    named = statistics(comparison(KINDS), replace(CLOSE, pairs="urg:random"), 0)
    assert named.method.endswith("of those that were named")


def test_what_nobody_asked_for_costs_no_power() -> None:
    """The same p, and the smaller family's correction is never the larger one."""
    small, large = (statistics(comparison(KINDS), replace(CLOSE, pairs=pairs), 0).tests for pairs in ("urg", "all"))
    by_pair = {frozenset((test.first, test.second)): test for test in large["rougeL"]}
    for test in small["rougeL"]:
        other = by_pair[frozenset((test.first, test.second))]
        assert test.p == other.p
        assert test.p_holm <= other.p_holm
    assert any(test.p_holm < by_pair[frozenset((test.first, test.second))].p_holm for test in small["rougeL"])


def test_the_ranks_metrics_and_bleu_are_tested_where_they_have_values() -> None:
    for metric in ("hit@1", "ndcg", "spearman", "bleu", "label", "bertscore"):
        assert list(statistics(comparison(KINDS, metric=metric), CLOSE, 0).tests) == [metric]
    assert statistics(comparison(KINDS, metric="rouge1"), CLOSE, 0).tests == {}


@pytest.mark.parametrize(("metric", "better"), [("rougeL", 7), ("gpt_rank", 1)])
def test_a_sentence_counts_what_urg_is_better_than_whichever_way_that_is(metric: str, better: int) -> None:
    made = comparison(KINDS, metric=metric)
    found = sentences(made, statistics(made, replace(CLOSE, metrics=metric), 0))
    (urg,) = [line for line in found if line.startswith("urg on")]
    assert f"better than {better} and worse than {8 - better} of 8 systems, 0 undecided" in urg
    assert urg.endswith("(p < 0.05, Holm over 13 pairs)")


def test_pairs_are_named_and_a_name_may_hold_a_colon() -> None:
    assert named_pair("model:urg:urg", ["urg", "model:urg"]) == ("model:urg", "urg")
    for wrong in ({"pairs": "random"}, {"pairs": ""}, {"confidence": 1.0}, {"resamples": 7}, {"trials": -1}):
        with pytest.raises(ValueError, match="statistics"):
            StatisticsConfig(**wrong)  # type: ignore[arg-type]
