"""What a valid row is: `Example` and `Candidate`, in MixInstruct's schema; and the check that makes one of parsed JSON.

A row is an object with `id`, `instruction` and/or `input`, and `candidates`; `output` (the reference) and `cmp_results`
may be missing. A candidate is an object with `model` and `text`; `decoding_method` and `scores` may be missing. Other
keys are ignored. An empty candidate text is an answer like any other; a row without candidates is not a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from data_pipeline.errors import RowError


@dataclass(frozen=True)
class Candidate:
    """One model's answer. `scores` holds finite numbers only: a score that is absent from it is missing."""

    model: str
    decoding_method: str
    text: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Example:
    """One question with its candidates. `output` is the reference, "" where there is none.

    cmp_results: judge's verdicts by pair, `{"model_A,model_B": "A is better"}`; None where nobody compared.
    """

    id: str
    instruction: str
    input: str
    output: str
    candidates: tuple[Candidate, ...]
    cmp_results: dict[str, str] | None = None


def parse_row(row: Mapping[str, Any], *, needs_candidates: bool = True) -> Example:
    """The `Example` that a parsed JSON object holds. Raises `RowError` (reason, message) where it holds none.

    needs_candidates: False also takes a row that has none yet: a prompt.

    Reasons: missing_key, bad_type, empty_question, no_candidates, bad_candidate, bad_cmp_results.
    """
    instruction, question_input = _text(row, "instruction"), _text(row, "input")
    if not instruction.strip() and not question_input.strip():
        raise RowError("empty_question", "instruction and input are both empty or missing")
    return Example(
        id=_identifier(row),
        instruction=instruction,
        input=question_input,
        output=_text(row, "output"),
        candidates=_candidates(row) if needs_candidates or row.get("candidates") else (),
        cmp_results=_comparisons(row.get("cmp_results")),
    )


def encodable(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD. Everything else is kept."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _identifier(row: Mapping[str, Any]) -> str:
    """The row's id as text; integers are accepted."""
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        raise RowError("missing_key", "the row has no id")
    if not isinstance(value, str):
        raise RowError("bad_type", f"id is {_kind(value)} where text is needed")
    return encodable(value)


def _text(row: Mapping[str, Any], key: str) -> str:
    """The row's text under `key`; missing and null are ""."""
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("bad_type", f"{key} is {_kind(value)} where text is needed")
    return encodable(value)


def _candidates(row: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """The row's candidates in their order, at least one."""
    value = row.get("candidates")
    if value is None:
        raise RowError("missing_key", "the row has no candidates key")
    if not isinstance(value, list):
        raise RowError("bad_type", f"candidates is {_kind(value)} where a list is needed")
    if not value:
        raise RowError("no_candidates", "the list of candidates is empty")
    return tuple(_candidate(item, index) for index, item in enumerate(value))


def _candidate(item: object, index: int) -> Candidate:
    """Candidate number `index` of its row."""
    if not isinstance(item, dict):
        raise RowError("bad_candidate", f"candidate {index} is {_kind(item)} where an object is needed")
    model, text, scores = item.get("model"), item.get("text"), item.get("scores")
    if not isinstance(model, str) or not model:
        raise RowError("bad_candidate", f"candidate {index} has no model name")
    if not isinstance(text, str):
        raise RowError("bad_candidate", f"candidate {index} ({encodable(model)}) has no text")
    if scores is not None and not isinstance(scores, dict):
        raise RowError("bad_candidate", f"scores of candidate {index} is {_kind(scores)} where an object is needed")
    method = item.get("decoding_method")
    return Candidate(
        model=encodable(model),
        decoding_method=encodable(method) if isinstance(method, str) else "",
        text=encodable(text),
        scores=_finite_scores(scores or {}),
    )


def _finite_scores(scores: Mapping[str, object]) -> dict[str, float]:
    """The scores that are finite numbers; null, NaN, infinities and text are missing ones."""
    if _are_plain(scores):
        return dict(scores)
    finite = {}
    for name, value in scores.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number = _float(value)
            if math.isfinite(number):
                finite[encodable(name)] = number
    return finite


def unusable_scores(scores: Mapping[str, object]) -> list[tuple[str, str]]:
    """(name, what it is instead) of each score that is no finite number; null, which says that there is none, is not
    among them."""
    return [(encodable(name), what) for name, value in scores.items() if (what := _not_a_score(value))]


def _not_a_score(value: object) -> str:
    """What `value` is, where it is neither null nor a finite number; else ""."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "" if math.isfinite(_float(value)) else "infinite"
    return "" if value is None else _kind(value)


def _are_plain(scores: Mapping[str, Any]) -> TypeGuard[Mapping[str, float]]:
    """Whether all are finite floats under plain names: nearly always, and a quick look."""
    values = scores.values()
    return {*map(type, values)} <= {float} and all(map(math.isfinite, values)) and "".join(scores).isascii()


def _float(value: float) -> float:
    """`value` as a float; NaN for an integer that no float can hold."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _comparisons(value: object) -> dict[str, str] | None:
    """`cmp_results`: in MixInstruct a JSON string of an object, or "null"; an object or null itself is accepted too."""
    if isinstance(value, str):
        value = _parsed_comparisons(value)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(verdict, str) for verdict in value.values()):
        raise RowError("bad_cmp_results", "cmp_results is not an object of texts by pair of models")
    return {encodable(pair): encodable(verdict) for pair, verdict in value.items()}


def _parsed_comparisons(text: str) -> object:
    """The JSON value in `text`; blank text is null."""
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise RowError("bad_cmp_results", "cmp_results is text, but not JSON") from None


def _kind(value: object) -> str:
    """How a message names the JSON type of `value`."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
