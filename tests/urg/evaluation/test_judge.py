"""The judge's metrics: values worked by hand from LLM-Blender's published scoring, and verdicts that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shards import TokenizedExample
from tests.urg.made_up import row
from urg.evaluation.config import JudgeConfig
from urg.evaluation.judge import (
    ITSELF,
    JUDGE_METRICS,
    NO_PAIR,
    NOT_JUDGED,
    POINTS,
    UNKNOWN_MODEL,
    UNKNOWN_VERDICT,
    Judged,
    judge_metrics,
    read_verdicts,
)
from urg.systems import Answer

CONFIG = JudgeConfig(vicuna="v", open_assistant="o")
POINTS_ALONE = replace(CONFIG, scoring="points")
FULL = {"v,o": "A is better", "v,x": "Same good", "o,x": "B is better", "v,y": "A is better", "o,y": "Same bad",
        "x,y": "A is better"}  # fmt: skip


def judged_row(verdicts: Mapping[str, str] | None, models: str = "voxy") -> TokenizedExample:
    return replace(row("1", list(models), list(models)), cmp_results=verdicts)


def of_pick(model: str, verdicts: Mapping[str, str] = FULL, config: JudgeConfig = CONFIG) -> dict[str, float]:
    made = judged_row(verdicts)
    answers: list[Answer | None] = [Answer("", made.models.index(model))]
    values, _ = judge_metrics(answers, [made], read_verdicts([made], config), config)
    return {metric: float(value[0]) for metric, value in values.items()}


def test_ranks_by_hand() -> None:
    """points v 2.5, o −2.5, x 2.5, y −2.5: v wins two and shares a good one; o loses two and shares a bad one."""
    (verdicts,) = read_verdicts([judged_row(FULL)], POINTS_ALONE).rows
    assert verdicts is not None
    assert verdicts.points_NN[0].tolist()[1:] == [1.0, 0.5, 1.0]
    assert np.nansum(verdicts.points_NN, axis=1).tolist() == [2.5, -2.5, 2.5, -2.5]
    assert verdicts.ranks_N.tolist() == [1, 3, 1, 3]  # equal sums share the better rank


def test_metrics_by_hand() -> None:
    x = of_pick("x")
    assert (x["gpt_rank"], x["beat_vic"], x["beat_oa"]) == (1.0, 100.0, 100.0)  # good draw with v, above o
    assert (x["judge_top1"], x["judge_top3"]) == (100.0, 100.0)
    y = of_pick("y")
    assert (y["gpt_rank"], y["beat_vic"], y["beat_oa"]) == (3.0, 0.0, 0.0)  # a bad draw with o beats nobody
    assert (y["beat_vic_rank"], y["beat_oa_rank"]) == (0.0, 100.0)  # but its rank is no worse than o's
    assert (y["judge_top2"], y["judge_top3"]) == (0.0, 100.0)


def test_the_two_published_ways_to_beat_differ_where_the_model_itself_is_picked() -> None:
    v = of_pick("v")
    assert (v["beat_vic"], v["beat_vic_rank"]) == (0.0, 100.0)
    made = judged_row(FULL)
    values, reasons = judge_metrics([Answer("", 0)], [made], read_verdicts([made]), CONFIG, single=True)
    assert np.isnan(values["beat_vic"][0])  # of Vicuna's own row, as published
    assert values["beat_oa"][0] == 100.0
    assert reasons["beat_vic_rank"] == {ITSELF: 1}


def test_draws_cancel_in_the_margin() -> None:
    verdicts = {"v,o": "Same good", "v,x": "A is better", "o,x": "B is better", "x,y": "Same bad"}
    points = tuple(of_pick(m, verdicts, POINTS_ALONE)["gpt_rank"] for m in "oy")
    margin = tuple(of_pick(m, verdicts)["gpt_rank"] for m in "oy")
    assert points == (2.0, 2.0)  # v 1.5; o, x and y stand together at −0.5
    assert margin == (4.0, 2.0)  # v 2, x 0, y 0, o −2


def published_ranks(models: str, verdicts: Mapping[str, str]) -> list[int]:
    """GPT-Rank as LLM-Blender's code computes it, said plainly: every candidate takes part, and every pair adds up."""
    cmp = np.zeros((len(models), len(models)))
    for key, verdict in verdicts.items():
        a, b = (models.index(name) for name in key.split(","))
        if verdict == "A is better":
            cmp[a, b], cmp[b, a] = cmp[a, b] + 1, cmp[b, a] - 1
        elif verdict == "B is better":
            cmp[a, b], cmp[b, a] = cmp[a, b] - 1, cmp[b, a] + 1
        else:
            half = 0.5 if verdict == "Same good" else -0.5
            cmp[a, b], cmp[b, a] = cmp[a, b] + half, cmp[b, a] + half
    scores = (cmp - cmp.T).sum(axis=-1).tolist()
    return [sorted(scores, reverse=True).index(score) + 1 for score in scores]


@given(st.dictionaries(st.permutations("abcdefghijk").map(lambda two: f"{two[0]},{two[1]}"),
                       st.sampled_from(list(POINTS)), min_size=1))  # fmt: skip
def test_ranks_are_those_of_the_published_code_where_the_twelfth_candidate_was_compared_with_none(
    verdicts: dict[str, str],
) -> None:
    models = "abcdefghijkl"  # some pairs in both orders, some in neither
    (found,) = read_verdicts([judged_row(verdicts, models)]).rows
    assert found is not None
    assert found.ranks_N.tolist() == published_ranks(models, verdicts)


def test_a_candidate_that_was_compared_with_none_takes_a_place_or_is_left_out() -> None:
    verdicts = {"v,o": "A is better", "x,o": "B is better"}  # v 2, o 0, x −2, y unknown
    found = {}
    for unjudged in ("zero", "left_out"):
        (row_verdicts,) = read_verdicts([judged_row(verdicts)], replace(CONFIG, unjudged=unjudged)).rows  # type: ignore[arg-type]
        assert row_verdicts is not None
        found[unjudged] = row_verdicts.ranks_N
    np.testing.assert_array_equal(found["zero"], [1, 2, 4, 2])
    np.testing.assert_array_equal(found["left_out"], [1, 2, 3, np.nan])
    assert of_pick("y", verdicts)["gpt_rank"] == 2
    assert np.isnan(of_pick("y", verdicts)["beat_vic"])  # nobody can say


@given(st.lists(st.sampled_from(list(POINTS)), min_size=6, max_size=6))
def test_with_all_pairs_judged_margin_orders_as_wins_less_losses(verdicts: list[str]) -> None:
    pairs = ["v,o", "v,x", "v,y", "o,x", "o,y", "x,y"]
    (found,) = read_verdicts([judged_row(dict(zip(pairs, verdicts, strict=True)))]).rows
    assert found is not None
    net = dict.fromkeys("voxy", 0)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        first, second = pair.split(",")
        step = {"A is better": 1, "B is better": -1}.get(verdict, 0)
        net[first] += step
        net[second] -= step
    assert found.ranks_N.tolist() == [1 + sum(other > mine for other in net.values()) for mine in net.values()]


def test_null_malformed_and_unknown_verdicts_are_counted() -> None:
    bad = {
        "v,nobody": "A is better",
        "v": "A is better",
        "v,v": "Same good",
        "o,x": "C is better",
        "v,o": "B is better",
    }
    judged = read_verdicts([judged_row(None), judged_row({}), judged_row(bad)], replace(CONFIG, unjudged="left_out"))
    assert [found is not None for found in judged.rows] == [False, False, True]
    assert judged.count == 1
    assert judged.ignored == {UNKNOWN_MODEL: 1, NO_PAIR: 2, UNKNOWN_VERDICT: 1}
    assert judged.rows[2] is not None
    assert judged.rows[2].ranks_N.tolist()[:2] == [2, 1]
    assert np.isnan(judged.rows[2].ranks_N[2:]).all()


def test_names_with_commas_and_both_orders() -> None:
    made = replace(row("1", ["1", "2"], ["a,b", "c"]), cmp_results={"a,b,c": "A is better", "c,a,b": "A is better"})
    judged = read_verdicts([made])
    assert not judged.ignored
    assert judged.rows[0] is not None
    assert judged.rows[0].points_NN[0, 1] == 0.0  # each was found better once


def test_a_pick_that_was_not_judged_has_no_value_but_a_reason() -> None:
    made = judged_row({"v,o": "A is better"})
    config = replace(CONFIG, open_assistant="gone", unjudged="left_out")
    answers = [Answer("", 2), Answer("a new text"), None, Answer("", 0)]
    rows = [made] * 4
    values, reasons = judge_metrics(answers, rows, read_verdicts(rows, config), config)
    assert all(np.isnan(values[metric][:3]).all() for metric in JUDGE_METRICS)
    assert reasons["gpt_rank"] == {NOT_JUDGED: 1}
    assert values["gpt_rank"][3] == 1.0
    assert np.isnan(values["beat_oa"][3])
    assert any("gone" in reason and "judge.open_assistant" in reason for reason in reasons["beat_oa"])


def test_a_row_without_a_usable_verdict_has_no_ranks() -> None:
    assert read_verdicts([judged_row({"v,nobody": "A is better"})]).rows == (None,)
    assert Judged((), {}).count == 0
