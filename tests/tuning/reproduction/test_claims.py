from __future__ import annotations

from collections.abc import Callable

import pytest

from tuning.reproduction.claims import CLAIMS, HELD, NOT_HELD, UNTESTED, difference, is_above, verdicts
from tuning.reproduction.recipe import Recipe
from tuning.reproduction.results import Figure, Results

RATIOS = {"rank_vs_pairranker_full": 9.0, "rank_vs_pairranker_bubble": 3.0}
MakeUp = Callable[..., Results]
GOOD = {
    "ablated": {"wo_ranking": 0.6, "wo_erm": 0.7},
    "by_k": {1: 0.5, 2: 0.6, 3: 0.7, 6: 0.71, 1000: 0.7},
    "noise": {"urg": -1.0, "llm_blender": -4.0},
}


def by_claim(results: Results) -> dict[str, str]:
    return {each.claim: each.verdict for each in verdicts(results)}


def test_all_claims_hold_where_all_figures_say_so(made_up: MakeUp):
    found = by_claim(made_up(**GOOD))
    assert found == dict.fromkeys(CLAIMS, HELD)


@pytest.mark.parametrize(
    ("claim", "bad"),
    [
        ("URG-rank beats PairRanker on every metric", {"quality": {"pair_ranker": 0.71}}),
        ("URG beats LLM-Blender", {"quality": {"llm_blender": 0.8}}),
        ("Each ablation hurts", {"ablated": {"wo_ranking": 0.6, "wo_erm": 0.81}}),
        (
            "Noise costs URG about half of what it costs the other fuser",
            {"noise": {"urg": -3.0, "llm_blender": -4.0}},
        ),
        ("Gains flatten past K=3", {"by_k": {1: 0.5, 3: 0.6, 6: 0.8}}),
        ("Gains flatten past K=3", {"by_k": {1: 0.5, 3: 0.6, 6: 0.6, 1000: 0.8}}),  # nothing filtered
        ("URG ranks faster than PairRanker", {"ratios": RATIOS | {"rank_vs_pairranker_bubble": 0.9}}),
        ("The ensemble beats every model in it", {"quality": {"sim-b": 0.81}}),
    ],
)
def test_a_claim_falls_when_its_figures_turn(made_up: MakeUp, claim: str, bad: dict):
    found = by_claim(made_up(**(GOOD | bad)))
    assert found[claim] == NOT_HELD


NOISE = "Noise costs URG about half of what it costs the other fuser"


@pytest.mark.parametrize(
    ("urg", "other", "expected"),
    [(-1.0, -4.0, HELD), (-3.0, -4.0, NOT_HELD), (2.0, -3.0, HELD), (-1.0, 3.0, UNTESTED), (0.5, 0.5, UNTESTED)],
)
def test_noise_is_judged_by_losses_and_a_gain_is_none(made_up: MakeUp, urg: float, other: float, expected: str):
    assert by_claim(made_up(**(GOOD | {"noise": {"urg": urg, "llm_blender": other}})))[NOISE] == expected


def test_noise_by_which_the_other_did_not_lose_in_every_seed_is_left_out_and_said(made_up: MakeUp):
    results = made_up(**GOOD)
    given = {("urg", "12"): (-1.0, -1.0), ("llm_blender", "12"): (-1.5, 0.1)}
    given |= {("urg", "11,12"): (-1.0, 0.4), ("llm_blender", "11,12"): (-2.5, -3.0)}
    results.change = lambda system, added, metric: Figure(given[system, added])  # type: ignore[method-assign]
    verdict = CLAIMS[NOISE](NOISE, results)
    assert verdict.verdict == HELD
    assert "(not testable: the other did not lose in every seed); adding 11,12" in verdict.evidence


def test_a_claim_whose_figures_are_missing_is_not_testable(recipe: Recipe):
    for each in verdicts(Results(recipe, {})):
        assert each.verdict == UNTESTED
        assert each.evidence


def test_a_ratio_that_was_not_measured_is_no_verdict(made_up: MakeUp):
    assert by_claim(made_up(**GOOD, ratios={}))["URG ranks faster than PairRanker"] == UNTESTED


def test_a_difference_counts_where_every_seed_has_it_and_it_exceeds_its_spread():
    ours, theirs = Figure((0.5, 0.6, 0.7)), Figure((0.4, 0.5, 0.6))
    gap = difference(ours, theirs)
    assert gap is not None
    assert gap.mean == pytest.approx(0.1)
    assert is_above(gap)
    assert not is_above(Figure((0.1, -0.01, 0.1)))  # a seed against it
    assert not is_above(Figure((0.01, 0.5, 0.01)))  # the spread is larger
    assert difference(ours, None) is None
