"""The ceilings of selection: nothing that picks a candidate is above them, row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.shards import TokenizedExample
from tests.urg.made_up import StubEnsemble, random_rows, row
from urg.evaluation.answering import asks_oracles
from urg.evaluation.comparison import Comparison, compare
from urg.evaluation.config import JudgeConfig, StatisticsConfig
from urg.evaluation.judge import read_verdicts
from urg.evaluation.oracles import oracles
from urg.evaluation.statistics import statistics
from urg.evaluation.text_metrics import TextMetrics
from urg.systems import Setup, build_systems

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")
VERDICTS = {"model-0,model-1": "B is better", "model-1,model-2": "A is better", "model-0,model-2": "Same bad"}


def compared(rows: list[TokenizedExample]) -> Comparison:
    models = tuple(sorted({name for made in rows for name in made.models}))
    systems, _ = build_systems(Setup(label="quality", models=models, ensemble=StubEnsemble(noise=0.5)))  # type: ignore[arg-type]
    return compare(rows, "quality", systems, TextMetrics(), ceilings=True)


@pytest.mark.parametrize("metric", METRICS)
def test_no_pick_is_above_the_metrics_oracle_in_any_row(metric: str) -> None:
    result = compared(random_rows(15))
    ceiling = result.get(f"oracle_{metric}")
    assert ceiling is not None
    assert ceiling.kind == "ceiling"
    reached = np.zeros(15, dtype=bool)
    for other in result.results:
        if other.kind != "fuser":
            assert (other.values[metric] <= ceiling.values[metric]).all(), other.name
        if other.kind == "model":
            reached |= other.values[metric] == ceiling.values[metric]
    assert reached.all(), "it is the value of some candidate"


def test_the_judges_oracle_picks_what_the_judge_ranks_first() -> None:
    rows = [replace(made, cmp_results=VERDICTS if index % 2 else None) for index, made in enumerate(random_rows(6))]
    result = compared(rows)
    ceiling = result.get("oracle_judge")
    assert ceiling is not None
    assert [answer and answer.picked for answer in ceiling.answers] == [None, 1] * 3
    assert ceiling.means["gpt_rank"] == 1.0
    assert compared(random_rows(3)).get("oracle_judge") is None


def test_a_row_without_reference_has_no_oracle_and_one_that_the_judge_left_out_comes_last() -> None:
    rows = [
        row("1", ["a b", "c"], output="", quality=[1.0, 0.0]),
        row("2", ["a b", "c"], output="c", quality=[1.0, 0.0]),
        replace(
            row("3", ["a", "b", "c"], output="b", quality=[1.0, 0.0, 0.0]),
            cmp_results={"model-1,model-2": "B is better"},
        ),
    ]
    judged = read_verdicts(rows, JudgeConfig(unjudged="left_out"))
    found = {system.name: system.answer(rows) for system in oracles(rows, TextMetrics(), judged)}
    assert [answer and answer.picked for answer in found["oracle_rougeL"]] == [None, 1, 1]
    judge = found["oracle_judge"][2]
    assert judge is not None
    assert judge.picked == 2
    assert judge.scores is not None
    assert np.argsort(judge.scores).tolist() == [0, 1, 2]


def test_they_are_asked_for_by_all_or_by_name_and_take_no_part_in_the_tests_of_all_pairs() -> None:
    assert [asks_oracles(asked) for asked in ("all", "urg, oracles", "oracle", "urg,oracle_rougeL")] == [
        True, True, False, False,
    ]  # fmt: skip
    result = compared(random_rows(12))
    tests = statistics(result, StatisticsConfig(metrics="rougeL", trials=200, resamples=0), 0).tests["rougeL"]
    tested = {name for test in tests for name in (test.first, test.second)}
    assert "oracle" in tested
    assert not any(name.startswith("oracle_") for name in tested)
    pair = StatisticsConfig(metrics="rougeL", trials=200, resamples=0, pairs="urg:oracle_rougeL")
    assert len(statistics(result, pair, 0).tests["rougeL"]) == 1
