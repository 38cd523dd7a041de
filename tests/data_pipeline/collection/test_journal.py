from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.collection.journal import Journal, request_key
from data_pipeline.errors import UserError

KEYS = {request_key("m", bytes([row])): row for row in range(6)}
NAMES = list(KEYS)


def write(path: Path, texts: list[str]) -> None:
    with Journal(path, KEYS) as journal:
        for row, text in enumerate(texts):
            journal.add(row, NAMES[row], text)


def read(path: Path) -> dict[int, str]:
    with Journal(path, KEYS) as journal:
        return {row: journal.text(row) for row in range(len(KEYS)) if journal.has(row)}


@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_cut_anywhere_it_keeps_every_whole_line_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    path = tmp_path_factory.mktemp("journal") / "m.jsonl"
    write(path, texts)
    whole = path.read_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    path.write_bytes(cut)
    kept = cut.count(b"\n")
    assert read(path) == dict(enumerate(texts[:kept]))
    with Journal(path, KEYS) as journal:
        assert journal.damaged == 0
        for row in range(kept, len(texts)):
            journal.add(row, NAMES[row], texts[row])
            assert journal.text(row) == texts[row]
    assert path.read_bytes() == whole


def test_lines_of_other_keys_and_damaged_ones_are_counted_and_not_used(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    write(path, ["a", "b", "c"])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\0" * 30 + b"\n"
    path.write_bytes(b"".join([*lines, b'{"key": "other", "text": "x"}\n', b"[]\n", b'{"key": [], "text": "x"}\n']))
    with Journal(path, KEYS) as journal:
        assert (journal.unused, journal.damaged) == (1, 3)
    assert read(path) == {0: "a", 2: "c"}


def test_a_line_longer_than_what_is_read_at_a_time_is_dropped_too(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    write(path, ["a"])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    assert read(path) == {0: "a"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("taken", [0, 5])
def test_a_full_disk_is_said_and_loses_nothing_before(tmp_path: Path, taken: int):
    path = tmp_path / "m.jsonl"
    write(path, ["a"])
    with Journal(path, KEYS) as journal:
        real = journal._file

        class Full:
            def write(self, line: bytes) -> int:
                if taken:
                    return int(real.write(line[:taken]) or 0)
                raise OSError(errno.ENOSPC, "No space left on device")

        journal._file = Full()  # type: ignore[assignment]
        with pytest.raises(UserError, match="No space left"):
            journal.add(1, NAMES[1], "b")
        journal._file = real
    assert read(path) == {0: "a"}


def test_a_key_stands_for_model_and_prompt():
    keys = {request_key(model, prompt) for model in ("a", "b") for prompt in (b"1" * 16, b"2" * 16)}
    assert len(keys) == 4
