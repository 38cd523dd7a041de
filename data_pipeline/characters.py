"""Characters that no text should hold, found, counted, and by option removed or refused.

    control          Unicode class Cc but tab, newline and carriage return: NUL, escape codes, C1, …
    byte_order_mark  U+FEFF, at the start or within
    lone_surrogate   half of a pair that JSON escapes may hold and UTF-8 cannot
    not_nfc          text in another form than NFC: the same letters under other codes

`keep` leaves texts as they are; `clean` makes VT, FF and NEL newlines, removes other control characters and byte-order
marks, and writes NFC; `reject` refuses a row with a control character or a lone surrogate and cleans the others. Lone
surrogates that are not refused become U+FFFD, always, since no file can hold them. Ids and model names are not texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from data_pipeline.errors import RowError
from data_pipeline.schema import Example

KEEP, CLEAN, REJECT = "keep", "clean", "reject"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARK = "\ufeff"
_REMOVED = dict.fromkeys((*range(32), *range(127, 160), ord(_MARK)))
_TABLE = _REMOVED | {ord(kept): kept for kept in "\t\n\r"} | {ord(end): "\n" for end in "\x0b\x0c\x85"}
# In JSON a control character is such an escape, or DEL, or two bytes of UTF-8.
_CONTROL_ESCAPE, _C1_BYTES, _DEL = re.compile(rb"\\(?:u00|[bf])"), re.compile(rb"\xc2[\x80-\x9f]"), b"\x7f"


def may_hold_controls(raw: bytes) -> bool:
    """Whether a line of JSON could hold a control character: a quick look, which most lines pass."""
    # Looking for one byte first costs next to nothing.
    if _DEL in raw or (b"\\" in raw and _CONTROL_ESCAPE.search(raw)):
        return True
    return b"\xc2" in raw and _C1_BYTES.search(raw) is not None


def may_be_odd(raw: bytes) -> bool:
    """Whether a line of JSON could hold any of these characters: a quick look, which plain ASCII passes."""
    return not raw.isascii() or (b"\\" in raw and b"\\u" in raw) or may_hold_controls(raw)


def faults(text: str, controls: bool = True) -> list[str]:
    """Which of these characters a text holds. controls: whether it may hold control characters at all."""
    found = ["control"] if controls and _CONTROL.search(text) else []
    if not text.isascii():
        found += ["byte_order_mark"] * (_MARK in text)
        found += ["lone_surrogate"] * bool(_SURROGATE.search(text))
        found += ["not_nfc"] * (not unicodedata.is_normalized("NFC", text))
    return found


def cleaned(text: str) -> str:
    """`text` in NFC, without control characters and byte-order marks."""
    return unicodedata.normalize("NFC", text.translate(_TABLE))


def row_faults(row: Mapping[str, Any], controls: bool = True) -> Iterator[tuple[str, str]]:
    """(where, fault) for each text of a row, one that `parse_row` takes, as JSON has it. controls: as in `faults`."""
    for name in ("instruction", "input", "output"):
        yield from ((name, fault) for fault in faults(row.get(name) or "", controls))
    for index, candidate in enumerate(row["candidates"]):
        yield from ((f"candidate {index}", fault) for fault in faults(candidate["text"], controls))


def require_plain(row: Mapping[str, Any]) -> None:
    """Raises `RowError` bad_characters where a text holds a control character or a lone surrogate."""
    for where, fault in row_faults(row):
        if fault in ("control", "lone_surrogate"):
            raise RowError("bad_characters", f"{where} holds a {fault.replace('_', ' ')} character")


def clean_example(example: Example) -> Example:
    """`example` with every text cleaned. Raises `RowError` empty_question where nothing is left of the question."""
    instruction, question_input = cleaned(example.instruction), cleaned(example.input)
    if not instruction.strip() and not question_input.strip():
        raise RowError("empty_question", "instruction and input hold control characters only")
    candidates = tuple(replace(each, text=cleaned(each.text)) for each in example.candidates)
    output = cleaned(example.output)
    return replace(example, instruction=instruction, input=question_input, output=output, candidates=candidates)
