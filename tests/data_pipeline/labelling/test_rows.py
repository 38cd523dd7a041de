from __future__ import annotations

import json
from typing import Any

import pytest

from data_pipeline.labelling.rows import add_scores, add_verdicts


def row(comparisons: Any = None) -> dict[str, Any]:
    candidates = [{"model": "a", "text": "x", "scores": {"bleu": 1.0, "odd": None}}, {"model": "b", "text": "y"}]
    return {"id": "1", "instruction": "q", "candidates": candidates, "cmp_results": comparisons}


def test_new_scores_stand_beside_the_old():
    changed = row()
    add_scores(changed, [{"bleu": 2.0, "rouge1": 0.5}, {"rouge1": 0.0}])
    assert [candidate["scores"] for candidate in changed["candidates"]] == [
        {"bleu": 2.0, "odd": None, "rouge1": 0.5},
        {"rouge1": 0.0},
    ]
    untouched = row()
    add_scores(untouched, [{}, {}])
    assert untouched == row()


def test_a_score_that_is_to_go_goes_and_nothing_else_changes():
    changed = row()
    add_scores(changed, [{"bleu": None, "rouge1": 0.5}, {"bleu": None}])
    assert [candidate.get("scores") for candidate in changed["candidates"]] == [{"odd": None, "rouge1": 0.5}, None]


@pytest.mark.parametrize(
    "held", [{"b,a": "Same bad", "a,c": "A is better"}, '{"b,a": "Same bad", "a,c": "A is better"}']
)
def test_a_new_verdict_replaces_that_on_the_same_pair_in_either_order(held: Any):
    changed = row(held)
    add_verdicts(changed, {"a,b": "B is better"})
    assert json.loads(changed["cmp_results"]) == {"a,c": "A is better", "a,b": "B is better"}


def test_without_verdicts_the_row_stays_as_it_was():
    for held in (None, "null", {"a,b": "Same bad"}):
        changed = row(held)
        add_verdicts(changed, {})
        assert changed == row(held)
