from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning import (
    Repairs,
    Rules,
    clean_line,
    id_digest,
    parse_line,
    remarks_on_candidates,
    split_of,
)
from data_pipeline.errors import RowError


def line(*candidates: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"id": "1", "instruction": "q", "candidates": list(candidates), **changes}).encode()


def candidate(model: str = "m", **scores: float) -> dict[str, Any]:
    return {"model": model, "text": "t", "scores": scores}


def test_an_exact_zero_is_missing_only_on_a_log_scale():
    repairs = Repairs()
    example = clean_line(
        line(candidate(bartscore=0.0, bleu=0.0), candidate(bartscore=-0.1, logprobs=0)), Rules(), repairs
    )
    assert [each.scores for each in example.candidates] == [{"bleu": 0.0}, {"bartscore": -0.1}]
    assert repairs.zero_scores == {"bartscore": 1, "logprobs": 1}


def test_log_scale_scores_can_be_configured():
    example = clean_line(line(candidate(bartscore=0.0, mine=0.0)), Rules(log_scale_scores=["mine"]))
    assert example.candidates[0].scores == {"bartscore": 0.0}


def test_aliases_rename_models_and_their_comparisons_and_are_counted():
    repairs, old, new = Repairs(), "oasst-ft-4-pythia-12b-epoch-3.5", "oasst-sft-4-pythia-12b-epoch-3.5"
    raw = line(candidate(old), candidate("m"), cmp_results=json.dumps({f"m,{old}": "A is better"}))
    example = clean_line(raw, Rules(), repairs)
    assert [each.model for each in example.candidates] == [new, "m"]
    assert example.cmp_results == {f"m,{new}": "A is better"}
    assert repairs.aliased == {old: 1}


def test_scores_that_are_no_numbers_are_missing_and_counted_by_what_they_are():
    repairs = Repairs()
    raw = (
        b'{"id": "1", "instruction": "q", "candidates": ['
        b'{"model": "a", "text": "t", "scores": {"rougeL": "0.5", "bleu": NaN, "bartscore": 0.0, "own": 1}},'
        b'{"model": "b", "text": "t", "scores": {"rougeL": "0.5", "bleu": -Infinity, "bartscore": null, "own": true}},'
        b'{"model": "c", "text": "t", "scores": {"rougeL": [1], "bleu": {}, "bartscore": "", "own": 1e999}},'
        b'{"model": "d", "text": "t"}]}'
    )
    example = clean_line(raw, Rules(), repairs)
    assert [each.scores for each in example.candidates] == [{"own": 1.0}, {}, {}, {}]
    assert repairs.unusable_scores == {
        "rougeL": {"text": 2, "a list": 1},
        "bleu": {"NaN": 1, "infinite": 1, "an object": 1},
        "bartscore": {"text": 1},
        "own": {"true or false": 1, "infinite": 1},
    }
    assert repairs.zero_scores == {"bartscore": 1}
    assert remarks_on_candidates({"rougeL": {"text": 1480, "NaN": 2}, "bleu": {"text": 1480}}, {}) == [
        "scores that are no numbers, taken as missing: bleu 1,480 (text), rougeL 1,482 (text 1,480, NaN 2)"
    ]


def test_a_model_that_comes_again_in_its_row_is_kept_and_counted():
    repairs, models = Repairs(), ["m", "old", "n", "new", "m", "m"]
    for _ in range(2):
        example = clean_line(line(*map(candidate, models)), Rules(aliases={"old": "new"}), repairs)
    assert [each.model for each in example.candidates] == ["m", "new", "n", "new", "m", "m"]
    assert repairs.repeated_models == {"m": 4, "new": 2}
    assert remarks_on_candidates({}, repairs.repeated_models, most=1) == [
        "candidates whose model has answered before in the same row: m 4, … (kept)"
    ]
    assert remarks_on_candidates({}, {}) == []


def test_a_model_that_is_not_allowed_rejects_the_row():
    assert (
        clean_line(line(candidate("old")), Rules(aliases={"old": "new"}, models=["new"])).candidates[0].model == "new"
    )
    with pytest.raises(RowError) as caught:
        clean_line(line(candidate("other")), Rules(models=["new"]))
    assert caught.value.reason == "unknown_model"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"id": 1', "bad_json"),
        (b"[1]", "not_an_object"),
        ('{"id": "é"}'.encode("latin-1"), "bad_encoding"),
        ('{"id": 1}'.encode("utf-16"), "bad_encoding"),
        ('{"id": 1}'.encode("utf-16-be"), "bad_encoding"),  # as its lines are from the second on
        (b"[" * 100_000, "bad_json"),
        (b'{"id": ' + b"1" * 5000 + b"}", "bad_json"),
    ],
)
def test_a_line_that_holds_no_object_is_rejected_with_its_reason(raw: bytes, reason: str):
    with pytest.raises(RowError) as caught:
        parse_line(raw)
    assert caught.value.reason == reason


def test_what_is_wrong_with_a_line_is_a_whole_sentence():
    with pytest.raises(RowError, match=r"the line is not JSON \(Unterminated string starting at character 7\)"):
        parse_line(b'{"id": "1')


def test_a_byte_order_mark_is_no_part_of_the_row():
    assert parse_line(b'\xef\xbb\xbf{"id": 1}') == {"id": 1}


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_rejected(raw: bytes):
    try:
        outcome: Any = parse_line(raw)
    except RowError as error:
        outcome = error.reason
    assert isinstance(outcome, dict) or outcome in {"bad_encoding", "bad_json", "not_an_object"}


def test_the_split_depends_on_the_id_alone_and_keeps_the_shares():
    fractions = {"train": 0.8, "dev": 0.1, "test": 0.1}
    splits = [split_of(id_digest(f"row/{i}"), fractions) for i in range(5000)]
    assert splits == [split_of(id_digest(f"row/{i}"), fractions) for i in range(5000)]
    counts = Counter(splits)
    for name, share in fractions.items():
        assert counts[name] / 5000 == pytest.approx(share, abs=0.02)


@given(st.binary(min_size=16, max_size=16))
def test_an_empty_share_gets_no_row(digest: bytes):
    assert split_of(digest, {"train": 0.0, "dev": 1.0, "test": 0.0}) == "dev"
