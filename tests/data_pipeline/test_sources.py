from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from data_pipeline.sources import byte_ranges, find_files, find_split_files, read_lines, read_places


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


def test_files_by_name_glob_and_folder(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in find_files(str(tmp_path))] == ["a.jsonl", "b.jsonl"]
    assert [path.name for path in find_files(str(tmp_path / "*.txt"))] == ["notes.txt"]
    assert find_files(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match="no file at"):
        find_files(str(tmp_path / "none*"))


def test_a_folder_tells_its_splits_by_names(write_rows: Callable[..., Path], tmp_path: Path):
    for name in (
        "train_data_prepared.jsonl",
        "val_data_prepared.jsonl",
        "test/one.jsonl",
        "trainer.jsonl",
        "README.jsonl",
    ):
        write_rows(name, [{}])
    found = find_split_files(str(tmp_path))
    assert found is not None
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "train": ["train_data_prepared.jsonl"],
        "dev": ["val_data_prepared.jsonl"],
        "test": ["one.jsonl"],
    }


def test_a_folder_without_a_train_split_is_one_body_of_rows(write_rows: Callable[..., Path], tmp_path: Path):
    write_rows("test.jsonl", [{}])
    assert find_split_files(str(tmp_path)) is None
    assert find_split_files(str(tmp_path / "test.jsonl")) is None


def test_a_file_cannot_be_in_two_splits(write_rows: Callable[..., Path], tmp_path: Path):
    path = str(write_rows("a.jsonl", [{}]))
    with pytest.raises(UserError, match="splits train and test"):
        find_split_files({"train": path, "test": str(tmp_path)})


def test_an_empty_file_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UserError, match=r"a\.jsonl is empty"):
        byte_ranges([tmp_path / "a.jsonl"], 10)
