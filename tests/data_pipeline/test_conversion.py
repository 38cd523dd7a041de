from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.conversion import plain_lines, stream_lines
from data_pipeline.errors import UserError
from data_pipeline.prepare import prepare
from data_pipeline.shards import ShardSet
from data_pipeline.sources import list_source

Rows = Callable[..., list[dict[str, Any]]]


def converted(source: str, root: Path) -> list[Path]:
    return [plain_lines(file, root).path for file in list_source(source)]


def test_plain_local_files_are_read_where_they_lie(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert converted(str(tmp_path / "a.jsonl"), tmp_path / "out") == [tmp_path / "a.jsonl"]


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture):
    path, root = tmp_path / "a.jsonl.gz", tmp_path
    path.write_bytes(gzip.compress(b"{}\n"))
    (first,) = converted(str(path), root)
    assert (first.name, first.read_bytes()) == ("a.jsonl", b"{}\n")
    assert "converting" in capsys.readouterr().out
    assert converted(str(path), root) == [first]
    assert "converting" not in capsys.readouterr().out
    path.write_bytes(gzip.compress(b"[]\n"))
    (second,) = converted(str(path), root)
    assert (first.read_bytes(), second.read_bytes()) == (b"{}\n", b"[]\n")


def test_files_of_equal_content_keep_their_own_lines(tmp_path: Path):
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz", tmp_path / "other" / "a.jsonl.gz"]
    for path in paths:
        path.write_bytes(gzip.compress(b"{}\n"))
    found = [each for path in paths for each in converted(str(path), tmp_path)]
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "a.jsonl"]
    assert all(path.read_bytes() == b"{}\n" for path in found)


def test_a_remote_file_that_changes_is_fetched_again(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/one/a.jsonl", b"{}\n")
    (first,) = converted("memory://one/a.jsonl", tmp_path)
    assert converted("memory://one/a.jsonl", tmp_path) == [first]
    memory.pipe("/one/a.jsonl", b"[]\n")
    (second,) = converted("memory://one/a.jsonl", tmp_path)
    assert second.read_bytes() == b"[]\n"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_a_damaged_file_is_named_and_leaves_nothing_behind(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"\x1f\x8bnot what it says, and cut off")
    with pytest.raises(UserError, match=rf"{name} is cut off, damaged or out of reach \(.+\); fetch it again"):
        converted(str(tmp_path / name), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_empty_file_is_refused_by_its_own_name(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is empty"):
        converted(str(tmp_path / "a.jsonl.gz"), tmp_path)


def test_a_full_disk_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    real = Path.open

    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **rest: Full() if mode == "wb" else real(path, mode, **rest)
    )
    with pytest.raises(UserError, match=r"Cannot write to the folder .*No space left"):
        converted(str(tmp_path / "a.jsonl.gz"), tmp_path)


def test_lines_are_streamed_as_they_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from data_pipeline import formats

    monkeypatch.setattr(formats, "PIECE_BYTES", 3)
    (tmp_path / "a.jsonl").write_bytes(b"one\r\n\ntwo\nthree")
    (file,) = list_source(str(tmp_path / "a.jsonl"))
    assert list(stream_lines(file)) == [b"one", b"", b"two", b"three"]


def write_gzip(rows: list[Any], path: Path) -> None:
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))


def write_parquet(rows: list[Any], path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(("name", "write"), [("rows.jsonl.gz", write_gzip), ("rows.parquet", write_parquet)])
def test_shards_are_the_same_whatever_the_format_and_bad_rows_keep_their_number(
    without_ray: None, make_rows: Rows, tokenizer_folder: Path, tmp_path: Path, name: str, write: Callable[..., None]
):
    rows = make_rows(12)
    rows[4] = rows[4] | {"id": None}
    plain = tmp_path / "rows.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(rows, tmp_path / name)
    sets = [
        ShardSet.open(prepare(PrepareConfig(str(source), output=f"{source}.out", tokenizer=str(tokenizer_folder))))
        for source in (plain, tmp_path / name)
    ]
    shards = [[(path.name, path.read_bytes()) for path in sorted(each.folder.glob("*.parquet"))] for each in sets]
    assert shards[0] == shards[1]
    bad = json.loads((sets[1].folder / "quarantine.jsonl").read_text())
    assert (bad["file"], bad["line"], bad["reason"]) == (str(tmp_path / name), 5, "missing_key")
    (source,) = sets[1].manifest["sources"]
    assert (source["file"], source["format"]) == (str(tmp_path / name), name.removeprefix("rows."))


def test_rows_without_ids_are_counted_and_none_left_is_an_error(
    without_ray: None, make_rows: Rows, tokenizer_folder: Path, tmp_path: Path
):
    rows = [{key: value for key, value in row.items() if key != "id"} for row in make_rows(3)]
    write_parquet(rows, tmp_path / "rows.parquet")
    config = PrepareConfig(str(tmp_path / "rows.parquet"), output=str(tmp_path), tokenizer=str(tokenizer_folder))
    with pytest.raises(UserError, match=r"no valid row .*missing_key 3.*rows\.parquet line 1: the row has no id"):
        prepare(config)
