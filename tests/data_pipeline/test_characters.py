from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.characters import cleaned, faults, may_be_odd, may_hold_controls
from data_pipeline.cleaning import Repairs, Rules, clean_line
from data_pipeline.errors import RowError


def line(text: str, instruction: str = "q") -> bytes:
    return json.dumps({"id": "1", "instruction": instruction, "candidates": [{"model": "m", "text": text}]}).encode()


@pytest.mark.parametrize(
    ("text", "kinds", "clean"),
    [
        ("plain\ttext\r\n", [], "plain\ttext\r\n"),
        ("a\x00b\x1b[0m\x7f\x9b", ["control"], "ab[0m"),
        ("page\x0cnext\x85", ["control"], "page\nnext\n"),
        ("\ufeffa\ufeff", ["byte_order_mark"], "a"),
        ("e\u0301", ["not_nfc"], "é"),
        ("é \u202e, right to left", [], "é \u202e, right to left"),
    ],
)
def test_what_is_found_and_what_is_left(text: str, kinds: list[str], clean: str):
    assert faults(text) == kinds
    assert cleaned(text) == clean


@given(st.text())
def test_a_cleaned_text_has_no_fault_and_stays_as_it_is(text: str):
    once = cleaned(text)
    assert faults(once) == []
    assert cleaned(once) == once == unicodedata.normalize("NFC", once)


@given(st.text(alphabet=st.characters(), max_size=20), st.booleans())
def test_the_quick_look_misses_no_fault(text: str, ascii_only: bool):
    raw = json.dumps({"text": text}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert may_be_odd(raw) or not faults(text)
    assert faults(text, may_hold_controls(raw)) == faults(text)


def test_kept_texts_are_counted():
    repairs = Repairs()
    assert clean_line(line("a\x00\x00b"), Rules(), repairs).candidates[0].text == "a\x00\x00b"
    assert clean_line(line("\ud800"), Rules(), repairs).candidates[0].text == "\ufffd"
    assert repairs.characters == {"control": 1, "lone_surrogate": 1}


def test_cleaned_texts_are_counted():
    repairs = Repairs()
    example = clean_line(line("a\x00b", "\ufeffq"), Rules(characters="clean"), repairs)
    assert (example.instruction, example.candidates[0].text) == ("q", "ab")
    assert repairs.characters == {"control": 1, "byte_order_mark": 1}


@pytest.mark.parametrize(("text", "kind"), [("a\x00", "control"), ("\ud800", "lone surrogate")])
def test_reject_refuses_what_was_broken_and_cleans_the_rest(text: str, kind: str):
    with pytest.raises(RowError, match=f"candidate 0 holds a {kind} character") as caught:
        clean_line(line(text), Rules(characters="reject"))
    assert caught.value.reason == "bad_characters"
    assert clean_line(line("\ufeffa"), Rules(characters="reject")).candidates[0].text == "a"


def test_a_question_of_control_characters_is_empty():
    with pytest.raises(RowError) as caught:
        clean_line(line("a", "\x00\ufeff"), Rules(characters="clean"))
    assert caught.value.reason == "empty_question"
