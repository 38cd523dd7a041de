from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import RowError
from data_pipeline.schema import Candidate, encodable, parse_row


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "id": "a/1",
        "instruction": "Say hi.",
        "input": "",
        "output": "hi",
        "candidates": [{"model": "m", "decoding_method": "greedy", "text": "hello", "scores": {"bleu": 1}}],
        "cmp_results": "null",
    }
    return {**base, **changes}


def test_a_whole_row_is_read_as_it_is():
    example = parse_row(row(cmp_results=json.dumps({"m,n": "A is better"})))
    assert example.candidates == (Candidate("m", "greedy", "hello", {"bleu": 1.0}),)
    assert (example.id, example.instruction, example.input, example.output) == ("a/1", "Say hi.", "", "hi")
    assert example.cmp_results == {"m,n": "A is better"}


@pytest.mark.parametrize("verdicts", ["null", None, "", {"m,n": "Same bad"}, '{"m,n": "Same bad"}'])
def test_cmp_results_may_be_text_an_object_or_null(verdicts: Any):
    assert parse_row(row(cmp_results=verdicts)).cmp_results == (
        {"m,n": "Same bad"} if verdicts and verdicts != "null" else None
    )


def test_what_may_be_missing():
    example = parse_row({"id": 7, "input": "2+2?", "candidates": [{"model": "m", "text": ""}]})
    assert (example.id, example.instruction, example.output, example.cmp_results) == ("7", "", "", None)
    assert example.candidates == (Candidate("m", "", "", {}),)


def test_scores_that_are_no_finite_numbers_are_missing():
    scores = {"a": math.nan, "b": math.inf, "c": None, "d": "0.5", "e": True, "f": 10**400, "g": 0, "h": -1.5}
    example = parse_row(row(candidates=[{"model": "m", "text": "t", "scores": scores}]))
    assert example.candidates[0].scores == {"g": 0.0, "h": -1.5}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "missing_key"),
        ({"id": ""}, "missing_key"),
        ({"id": 1.5}, "bad_type"),
        ({"instruction": ["x"]}, "bad_type"),
        ({"instruction": " ", "input": None}, "empty_question"),
        ({"output": 3}, "bad_type"),
        ({"candidates": None}, "missing_key"),
        ({"candidates": {}}, "bad_type"),
        ({"candidates": []}, "no_candidates"),
        ({"candidates": ["text"]}, "bad_candidate"),
        ({"candidates": [{"model": "m"}]}, "bad_candidate"),
        ({"candidates": [{"model": "", "text": "t"}]}, "bad_candidate"),
        ({"candidates": [{"model": "m", "text": "t", "scores": [1]}]}, "bad_candidate"),
        ({"cmp_results": "{"}, "bad_cmp_results"),
        ({"cmp_results": {"m,n": 1}}, "bad_cmp_results"),
        ({"cmp_results": "[" * 100_000}, "bad_cmp_results"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(changes: dict[str, Any], reason: str):
    with pytest.raises(RowError) as caught:
        parse_row(row(**changes))
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["id", "instruction", "input", "output", "candidates", "cmp_results"])
candidate_like = st.dictionaries(st.sampled_from(["model", "text", "scores", "decoding_method"]), json_values)


@given(st.dictionaries(keys, json_values | st.lists(candidate_like, max_size=3)))
def test_any_object_is_read_or_rejected(value: dict[str, Any]):
    try:
        example = parse_row(value)
    except RowError:
        return
    assert example.id
    assert example.candidates


@given(st.text(st.characters(), max_size=30))
def test_encodable_text_changes_only_lone_surrogates(text: str):
    result = encodable(text)
    assert result.encode("utf-8").decode("utf-8") == result
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert result == text


def test_a_lone_surrogate_becomes_a_replacement_character():
    assert encodable("a\ud800b") == "a\ufffdb"
    assert encodable("\ud83d\ude00") == "\U0001f600"
