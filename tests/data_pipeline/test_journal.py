from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from data_pipeline.journal import Journal

KEYS = [bytes([row]) * 16 for row in range(6)]


def write(path: Path, texts: list[str]) -> None:
    with Journal(path) as journal:
        for key, text in zip(KEYS, texts, strict=False):
            journal.add(key, text)


def read(path: Path) -> dict[int, str]:
    with Journal(path) as journal:
        places = {key: place for key, place in journal.entries() if key}
        return {KEYS.index(key): journal.text(place) for key, place in places.items()}


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
    with Journal(path) as journal:
        assert [key for key, _ in journal.entries()] == KEYS[:kept]
        for row in range(kept, len(texts)):
            assert journal.text(journal.add(KEYS[row], texts[row])) == texts[row]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"\0" * 30, b"[]", b'{"key": [], "text": "x"}', b'{"key": "no", "text": "x"}', b""])
def test_a_damaged_line_has_no_key_and_the_others_keep_their_places(tmp_path: Path, damage: bytes):
    path = tmp_path / "m.jsonl"
    write(path, ["a", "b", "c"])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage + b"\n", lines[2]]))
    with Journal(path) as journal:
        assert [key for key, _ in journal.entries()] == [KEYS[0], None, KEYS[2]]
    assert read(path) == {0: "a", 2: "c"}


def test_of_two_answers_to_one_question_the_later_counts(tmp_path: Path):
    with Journal(tmp_path / "m.jsonl") as journal:
        for text in ("first", "second"):
            journal.add(KEYS[0], text)
    assert read(tmp_path / "m.jsonl") == {0: "second"}


def test_it_reads_while_it_writes(tmp_path: Path):
    with Journal(tmp_path / "m.jsonl") as journal:
        first = journal.add(KEYS[0], "é" * 9000)
        assert journal.text(first) == "é" * 9000
        second = journal.add(KEYS[1], "b")
        assert (journal.text(second), journal.text(first)[:1]) == ("b", "é")


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
    with Journal(path) as journal:
        real = journal._file

        class Full:
            def write(self, line: bytes) -> int:
                if taken:
                    return int(real.write(line[:taken]) or 0)
                raise OSError(errno.ENOSPC, "No space left on device")

        journal._file = Full()  # type: ignore[assignment]
        with pytest.raises(UserError, match="No space left"):
            journal.add(KEYS[1], "b")
        journal._file = real
    assert read(path) == {0: "a"}
