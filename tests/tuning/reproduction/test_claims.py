from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.tuning.reproduction.conftest import QUALITY, RATIOS, write_tests
from tuning.reproduction.claims import (
    ABOUT_HALF,
    CLAIMS,
    HELD,
    NOT_HELD,
    RULE,
    UNTESTED,
    Verdict,
    cost,
    difference,
    is_above,
    ratio,
    verdicts,
)
from tuning.reproduction.recipe import Recipe
from tuning.reproduction.results import TEXT_METRICS, Figure, Results
from urg.evaluation.config import StatisticsConfig
from urg.evaluation.paper_tables import published

MakeUp = Callable[..., Results]
RANKS, FUSES, ABLATED, NOISE, FLATTENS, FASTER, ENSEMBLE = CLAIMS
GOOD: dict[str, Any] = {
    "ablated": {"wo_ranking": {"urg_random_k": 0.6}, "wo_erm": {"urg": 0.7}},
    "by_k": {1: 0.5, 2: 0.6, 3: 0.7, 6: 0.71, 1000: 0.7},
    "noise": {"urg": -1.0, "llm_blender": -4.0},
}
ALL_TESTED = ("label", "rouge1", "rouge2", "rougeL", "bleu", "rougeLsum")


def found(results: Results, papers: bool = False) -> dict[str, Verdict]:
    """By claim: the preset's own recipe, or the paper's."""
    return {each.claim: each for each in verdicts(results) if each.recipe.startswith("the paper's") == papers}


def by_claim(results: Results, papers: bool = False) -> dict[str, str]:
    return {claim: each.verdict for claim, each in found(results, papers).items()}


def without(results: Results, *steps: str) -> Results:
    """The same without what these steps left."""
    return Results(results.recipe, {name: end for name, end in results.endings.items() if name not in steps})


def test_all_claims_hold_where_all_figures_say_so(made_up: MakeUp):
    assert by_claim(made_up(**GOOD)) == dict.fromkeys(CLAIMS, HELD)


@pytest.mark.parametrize(
    ("claim", "bad"),
    [
        (RANKS, {"quality": {"pair_ranker": 0.71}}),
        (FUSES, {"quality": {"llm_blender": 0.8}}),
        (FUSES, {"quality": {"llm_blender": (0.79, 0.79, 0.6)}}),  # in every seed, but its spread is larger
        (ABLATED, {"ablated": {"wo_ranking": {"urg_random_k": 0.6}, "wo_erm": {"urg": 0.81}}}),
        (NOISE, {"noise": {"urg": -3.0, "llm_blender": -4.0}}),
        (FLATTENS, {"by_k": {1: 0.5, 3: 0.6, 6: 0.8}}),
        (FLATTENS, {"by_k": {1: 0.5, 3: 0.6, 6: 0.6, 1000: 0.8}}),  # nothing filtered
        (FASTER, {"ratios": RATIOS | {"rank_vs_pairranker_bubble": 0.9}}),
        (ENSEMBLE, {"quality": {"sim-b": 0.81}}),
    ],
)
def test_a_claim_falls_when_its_figures_turn(made_up: MakeUp, claim: str, bad: dict[str, Any]):
    assert by_claim(made_up(**(GOOD | bad)))[claim] == NOT_HELD


def test_each_claim_is_judged_by_the_papers_recipe_too(made_up: MakeUp):
    """What was trained with it only: its pick and its text, not its ablations."""
    results = made_up(**GOOD, quality={"pair_ranker": 0.65})
    assert {each.recipe for each in verdicts(results)} == {
        "the preset's: listnet on log, γ=3",
        "the paper's: hinge on attention, γ=5",
    }
    bad = GOOD | {"ablated": GOOD["ablated"] | {"paper": {"urg_rank": 0.6, "urg": 0.5}}}
    own, papers = by_claim(made_up(**bad)), found(made_up(**bad), papers=True)
    assert own == dict.fromkeys(CLAIMS, HELD)
    assert [papers[claim].verdict for claim in (RANKS, FUSES, ENSEMBLE)] == [NOT_HELD] * 3
    assert by_claim(made_up(**GOOD), papers=True)[RANKS] == HELD
    for claim in (ABLATED, NOISE, FLATTENS):
        assert papers[claim].verdict == UNTESTED
        assert "with this recipe" in papers[claim].evidence
    assert papers[FASTER].verdict == HELD
    missing = found(without(made_up(**bad), "evaluate-paper-s1"), papers=True)
    assert (missing[RANKS].verdict, missing[RANKS].evidence) == (UNTESTED, "evaluate-paper-s1: not run")


def test_a_preset_without_the_papers_recipe_says_so(made_up: MakeUp, recipe: Recipe):
    results = made_up(**GOOD)
    recipe.preset = replace(recipe.preset, recipes={})
    assert {each.evidence for each in found(results, papers=True).values()} == {"the preset trains no such recipe"}


@pytest.mark.parametrize("settings", [{"preset": "flan-t5-large", "shards": "set", "seeds": 2}])
def test_where_the_presets_recipe_is_the_papers_there_is_one_verdict(made_up: MakeUp):
    results = made_up(**GOOD)
    assert len(verdicts(results)) == len(CLAIMS)
    assert verdicts(results)[0].recipe == "the paper's, which is the preset's: hinge on attention, γ=5"
    assert by_claim(results, papers=True) == dict.fromkeys(CLAIMS, HELD)


@pytest.mark.parametrize(
    ("urg", "other", "expected"),
    [(-1.0, -4.0, HELD), (-3.0, -4.0, NOT_HELD), (2.0, -3.0, HELD), (-1.0, 3.0, UNTESTED), (0.5, 0.5, UNTESTED)],
)
def test_noise_is_judged_by_losses_and_a_gain_is_none(made_up: MakeUp, urg: float, other: float, expected: str):
    assert by_claim(made_up(**(GOOD | {"noise": {"urg": urg, "llm_blender": other}})))[NOISE] == expected


def test_a_claim_whose_figures_are_missing_is_not_testable(recipe: Recipe):
    for each in verdicts(Results(recipe, {})):
        assert each.verdict == UNTESTED
        assert each.evidence


@pytest.mark.parametrize(
    ("claim", "step"),
    [
        (RANKS, "compare-s2"),
        (FUSES, "compare-s1"),
        (ABLATED, "evaluate-wo_erm-s1"),
        (ABLATED, "evaluate-wo_ranking-s0"),
        (NOISE, "noise-s1"),
        (FLATTENS, "train-all_candidates-s2"),
        (FASTER, "benchmark-rankers"),
        (ENSEMBLE, "compare-s0"),
        (ENSEMBLE, "compare-s2"),
    ],
)
def test_a_part_of_the_evidence_is_not_enough(made_up: MakeUp, claim: str, step: str):
    each = found(without(made_up(**GOOD), step))[claim]
    assert (each.verdict, each.evidence) == (UNTESTED, f"{step}: not run")


def test_metrics_without_a_model_are_named(made_up: MakeUp):
    for claim in (RANKS, FUSES):
        evidence = found(made_up(**GOOD))[claim].evidence
        assert evidence.endswith("not measured, for no model was named: bertscore, bartscore, bleurt")


@pytest.mark.parametrize("settings", [{"bertscore_model": "some/encoder"}])
def test_a_metric_that_a_system_lacks_is_no_evidence(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch):
    results = made_up(**GOOD)
    own = Results.compared
    monkeypatch.setattr(Results, "compared", lambda self, s, m: None if m == "bertscore" else own(self, s, m))
    each = found(results)[FUSES]
    assert (each.verdict, each.evidence.split(";")[0]) == (UNTESTED, "not every seed has a figure of bertscore")
    monkeypatch.setattr(Results, "dev", lambda *_: None)
    assert "no bertscore on the dev split was recorded by k1" in found(results)[FLATTENS].evidence


def test_a_ratio_that_was_not_measured_is_no_verdict(made_up: MakeUp):
    assert by_claim(made_up(**GOOD, ratios={}))[FASTER] == UNTESTED


def test_a_difference_counts_where_every_seed_has_it_and_it_exceeds_its_spread():
    ours, theirs = Figure((0.5, 0.6, 0.7)), Figure((0.4, 0.5, 0.6))
    gap = difference(ours, theirs)
    assert gap is not None
    assert gap.mean == pytest.approx(0.1)
    assert is_above(gap)
    assert not is_above(Figure((0.1, -0.01, 0.1)))  # a seed against it
    assert not is_above(Figure((0.01, 0.5, 0.01)))  # the spread is larger
    assert not is_above(Figure((0.1,)))  # one seed has no spread
    assert difference(ours, None) is None


def test_the_rule_says_what_it_means_over_three_seeds():
    """mean > spread is t > √3 on two degrees of freedom, whose distribution is in closed form."""
    t = math.sqrt(3)
    assert f"t > {t:.2f}" in RULE
    assert 0.11 < 0.5 - t / (2 * math.sqrt(2 + t * t)) < 0.12


def test_noise_is_judged_by_its_mean_costs(made_up: MakeUp):
    def verdict(urg: Any, other: Any) -> Verdict:
        return found(made_up(**(GOOD | {"noise": {"urg": urg, "llm_blender": other}})))[NOISE]

    assert "cost the other fuser no rougeL" in verdict(-4.0, 10.0).evidence
    assert verdict((-1.0, -1.0, -2.5), (-4.0, -4.0, -2.0)).verdict == NOT_HELD  # a seed against it
    assert verdict({"12": -1.0, "11,12": -3.0}, -4.0).verdict == NOT_HELD
    assert verdict((-1.0, -2.0, -3.0), (-4.0, -5.0, -6.0)).evidence.count("0.40 ± 0.12 of it") == 2


def test_the_papers_own_table_5_costs_about_half(made_up: MakeUp):
    table = published()["urg"]["table5"]
    for column, metric in enumerate(table["columns"]):
        changes: dict[str, dict[str, float]] = {"urg": {}, "llm_blender": {}}
        for row in table["rows"]:
            changes[row["ours"][0]][row["added"]] = row["values"][column]
        for added in ("12", "11,12"):
            ours, theirs = (cost(Figure((changes[name][added],))) for name in ("urg", "llm_blender"))
            assert ratio(ours, theirs).mean <= ABOUT_HALF, metric
        assert by_claim(made_up(**(GOOD | {"noise": changes})))[NOISE] == HELD


def test_gains_flatten_only_where_there_were_gains(made_up: MakeUp):
    none = {1: 0.865, 3: 0.8651, 6: 0.8651, 1000: 0.8651}
    noisy = none | {1: (0.86, 0.87, 0.86), 3: (0.865, 0.865, 0.865), 6: (0.869,) * 3, 1000: (0.865,) * 3}
    each = found(made_up(**(GOOD | {"by_k": noisy})))[FLATTENS]
    assert each.verdict == NOT_HELD
    assert "no gain up to K=3 that counts" in each.evidence
    paired = {1: (0.5, 0.6, 0.7), 3: (0.52, 0.62, 0.72), 6: (0.525, 0.625, 0.725), 1000: (0.5, 0.6, 0.7)}
    assert by_claim(made_up(**(GOOD | {"by_k": paired})))[FLATTENS] == HELD  # the seeds differ by more than the gain


@pytest.mark.parametrize("settings", [{"seeds": 1}])
class TestOneSeed:
    def test_goes_by_the_paired_tests_on_the_rows(self, made_up: MakeUp, recipe: Recipe):
        results = made_up(**GOOD)
        write_tests(recipe, dict.fromkeys(ALL_TESTED, 0.001))
        own = found(results)
        assert [own[claim].verdict for claim in (RANKS, FUSES, ENSEMBLE)] == [HELD] * 3
        assert "one seed: label +0.0500 (p 0.001)" in own[RANKS].evidence
        write_tests(recipe, dict.fromkeys(ALL_TESTED, 0.001) | {"rougeL": 0.06})
        assert [by_claim(results)[claim] for claim in (RANKS, FUSES, ENSEMBLE)] == [NOT_HELD] * 3
        write_tests(recipe, {"label": 0.001})
        assert by_claim(results)[RANKS] == UNTESTED
        assert "no paired test of rouge1" in found(results)[RANKS].evidence

    def test_below_for_sure_is_not_held(self, made_up: MakeUp, recipe: Recipe):
        results = made_up(**GOOD, quality={"pair_ranker": QUALITY["urg_rank"] + 0.1})
        write_tests(recipe, dict.fromkeys(ALL_TESTED, 0.001))
        assert by_claim(results)[RANKS] == NOT_HELD

    def test_decides_nothing_without_a_paired_test(self, made_up: MakeUp):
        results = made_up(**GOOD)
        for claim in (ABLATED, NOISE, FLATTENS):
            assert found(results)[claim].verdict == UNTESTED
            assert found(results)[claim].evidence.startswith("one seed, and no paired test")
        assert by_claim(results)[FASTER] == HELD
        assert by_claim(results, papers=True)[RANKS] == UNTESTED


@pytest.mark.parametrize("preset", ["flan-t5-large", "flan-t5-xl"])
def test_at_full_size_every_metric_of_a_claim_is_tested(preset: Any):
    from tuning.reproduction.config import load_preset

    asked = set(load_preset(preset).evaluate["statistics.metrics"].split(","))
    assert {"label", *TEXT_METRICS} <= asked
    assert set(StatisticsConfig().metrics.split(",")) <= asked


def test_data_without_a_single_model_have_no_verdict_on_them(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch):
    results = made_up(**GOOD)
    own = Results.document

    def document(self: Results, step: str, file: str = "metrics.json") -> Any:
        read = own(self, step, file)
        return read and read | {"kinds": dict.fromkeys(read.get("kinds", {}), "ranker")}

    monkeypatch.setattr(Results, "document", document)
    each = found(results)[ENSEMBLE]
    assert (each.verdict, each.evidence) == (UNTESTED, "no single model has rougeL in compare-s0")
