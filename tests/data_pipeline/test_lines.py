from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from data_pipeline.lines import ByteRange, byte_ranges, read_lines, read_places


@given(
    st.lists(st.sampled_from([b"", b"a", b"bc\r", b"def", b"\xff\xfe"]), min_size=1), st.integers(1, 9), st.booleans()
)
def test_ranges_of_any_size_hold_every_line_once_and_in_order(lines: list[bytes], size: int, ends: bool):
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    if not content:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.jsonl")
        path.write_bytes(content)
        found = [line for part in byte_ranges([path], size) for line in read_lines(part)]
        expected = content.removesuffix(b"\n").split(b"\n")
        assert [line.raw for line in found] == [line.rstrip(b"\r") for line in expected]
        places = [0] * len(found), [line.offset for line in found], [len(line.raw) for line in found]
        assert read_places([str(path)], *places) == [line.raw for line in found]


def test_line_numbers_start_anew_in_each_range(tmp_path: Path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"aa\nbb\ncc\n")
    assert [[line.number for line in read_lines(part)] for part in byte_ranges([path], 6)] == [[0, 1], [0]]


def test_an_empty_file_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UserError, match=r"a\.jsonl is empty"):
        byte_ranges([tmp_path / "a.jsonl"], 10)


def test_what_cannot_be_read_is_named_so_that_it_is_not_taken_for_the_output(tmp_path: Path):
    gone = str(tmp_path / "gone.jsonl")
    for read in (
        lambda: read_places([gone], [0], [0], [1]),
        lambda: list(read_lines(ByteRange(gone, 0, 1))),
        lambda: byte_ranges([Path(gone)], 10),
    ):
        with pytest.raises(UserError, match=r"gone\.jsonl cannot be read \(No such file or directory\)"):
            read()


def test_places_of_several_files_come_in_the_order_asked_for(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(f"{name}0\n{name}1\n".encode())
    paths = [str(tmp_path / name) for name in ("a", "b")]
    assert read_places(paths, [1, 0, 0, 1], [3, 3, 0, 0], [2, 2, 2, 2]) == [b"b1", b"a1", b"a0", b"b0"]
