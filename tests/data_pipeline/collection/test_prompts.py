from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.collection.prompts import parse_prompt, survey_prompts
from data_pipeline.errors import RowError, UserError

Write = Callable[..., Path]

BAD = [
    (b'{"instruction": "no id"}', "missing_key"),
    (b'{"id": "", "instruction": "q"}', "missing_key"),
    (b'{"id": 1.5, "instruction": "q"}', "bad_type"),
    (b'{"id": "b1"}', "empty_question"),
    (b'{"id": "b2", "instruction": "q", "candidates": [{"model": "m"}]}', "bad_candidate"),
    (b'{"id": "b3", ', "bad_json"),
    ('{"id": "é"}'.encode("latin-1"), "bad_encoding"),
    (b"[]", "not_an_object"),
    (b'{"id": "good", "instruction": "again"}', "duplicate_id"),
]


def test_good_prompts_are_found_and_the_others_rejected_with_line_and_reason(write_rows: Write):
    good = [
        {"id": "good", "instruction": "q", "output": "a", "other": [1]},
        {"id": 7, "input": "only input", "candidates": []},
        {"id": "has", "instruction": "é\u2028", "candidates": [{"model": "m", "text": "t"}]},
    ]
    path = write_rows("prompts.jsonl", [good[0], b"", *(raw for raw, _ in BAD), b"  ", *good[1:]])
    rejected: list[tuple[int, str]] = []
    prompts = survey_prompts(path, lambda line, error, raw: rejected.append((line, error.reason)))
    assert rejected == [(line, reason) for line, (_, reason) in enumerate(BAD, 3)]
    assert prompts.input == len(prompts) + len(BAD) == len(prompts) + sum(prompts.rejected.values())
    assert [prompt.record for prompt in prompts.read(range(3))] == good
    assert [prompt.example.id for prompt in prompts.read([2, 0])] == ["has", "good"]
    assert prompts.models == [frozenset(), frozenset(), frozenset({"m"})]
    assert list(prompts.lines) == [1, 13, 14]


def prompt_key(**row: Any) -> bytes:
    return parse_prompt(json.dumps(row).encode()).key


def test_a_key_is_of_id_and_question_and_of_nothing_else():
    key = prompt_key(id="1", instruction="a", input="b")
    assert key == prompt_key(id=1, instruction="a", input="b", output="x", candidates=[{"model": "m", "text": "t"}])
    others = [("2", "a", "b"), ("1", "ab", ""), ("1", "", "ab"), ("1", "b", "a")]
    assert key not in {prompt_key(id=a, instruction=b, input=c) for a, b, c in others}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b'{"instruction": "q"}\n' * 3, "none of its 3 lines is one; line 1: the row has no id"),
        (b"\x1f\x8b\x08\x00 not text\n", "line 1: the line is not UTF-8"),
    ],
)
def test_a_file_without_a_prompt(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        survey_prompts(path, lambda line, error, raw: None)


def test_a_file_that_is_not_there_or_none(tmp_path: Path):
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            survey_prompts(path, lambda line, error, raw: None)


@pytest.mark.parametrize("change", [b'{"id": "0", "instruction": "x"}', b'{"id": "0", "instruction": "'])
def test_a_file_that_changes_while_it_is_read_is_noticed(write_rows: Write, change: bytes):
    path = write_rows("prompts.jsonl", [{"id": "0", "instruction": "q"}])

    def reject(line: int, error: RowError, raw: bytes) -> None:
        raise AssertionError

    prompts = survey_prompts(path, reject)
    path.write_bytes(change)
    with pytest.raises(UserError, match="was changed while it was read"):
        list(prompts.read([0]))
