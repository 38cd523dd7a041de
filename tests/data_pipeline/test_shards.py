from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from data_pipeline import shard_cache
from data_pipeline.config import PrepareConfig
from data_pipeline.encoding import Encoder, encode_rows
from data_pipeline.errors import UserError
from data_pipeline.prepare import prepare
from data_pipeline.shards import ShardSet
from data_pipeline.tokenization import load_tokenizer


@pytest.fixture
def rows(make_rows: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Ragged rows: three candidates, but one in row 2, an empty text in row 3, no reference and no scores in row 4."""
    rows = make_rows(25)
    rows[2]["candidates"] = rows[2]["candidates"][:1]
    rows[3]["candidates"][1]["text"] = ""
    rows[4]["output"] = ""
    for candidate in rows[4]["candidates"]:
        candidate["scores"] = {}
    rows[5]["candidates"][0]["scores"] = {"rougeL": math.nan, "only_here": 2.0}
    rows[6]["cmp_results"] = json.dumps({"model-0,model-1": "B is better"})
    return rows


@pytest.fixture
def root(
    rows: list[dict[str, Any]],
    write_rows: Callable[..., Path],
    make_rows: Callable[..., list[dict[str, Any]]],
    tokenizer_folder: Path,
    tmp_path: Path,
    without_ray: None,
) -> Path:
    """An output root with one set: 25 train rows in shards of 10, 3 test rows."""
    files = {"train": str(write_rows("train.jsonl", rows)), "test": str(write_rows("test.jsonl", make_rows(3, "test")))}
    config = PrepareConfig(files, str(tmp_path / "root"), str(tokenizer_folder), rows_per_shard=10)
    prepare(config)
    return tmp_path / "root"


def test_what_is_read_is_what_was_written(root: Path, rows: list[dict[str, Any]], tokenizer_folder: Path):
    from data_pipeline.schema import parse_row

    shards, encoder = ShardSet.open(root), Encoder.of(load_tokenizer(tokenizer_folder))
    train = shards.split("train")
    assert len(train) == len(rows)
    for source, row in zip(rows, train, strict=True):
        encoded = encode_rows([parse_row(source)], encoder, shards.lengths)
        assert (row.id, row.instruction, row.input, row.output) == tuple(
            source[key] for key in ("id", "instruction", "input", "output")
        )
        assert row.models == tuple(candidate["model"] for candidate in source["candidates"])
        assert row.texts == tuple(candidate["text"] for candidate in source["candidates"])
        assert row.question_ids.tolist() == encoded.questions[0].tolist()
        expected_ids = [encoded.responses[number].tolist() for number in range(len(row.texts))]
        assert [ids.tolist() for ids in row.response_ids] == expected_ids
        assert row.target_ids.tolist() == encoded.targets[0].tolist()
        assert {ids.dtype for ids in (row.question_ids, row.target_ids, *row.response_ids)} == {np.dtype(np.int32)}
        for name in shards.score_names:
            expected = [candidate["scores"].get(name, math.nan) for candidate in source["candidates"]]
            np.testing.assert_array_equal(row.scores[name], expected)
            assert row.scores[name].dtype == np.float64
    assert train[6].cmp_results == {"model-0,model-1": "B is better"}
    assert train[0].cmp_results is None
    assert len(train[3].response_ids[1]) == 0
    assert len(train[4].target_ids) == 0


def test_length_arrays_agree_with_the_rows(root: Path):
    shards = ShardSet.open(root)
    train = shards.split("train")
    assert train.n_candidates.tolist() == [len(row.models) for row in train]
    assert train.target_tokens.tolist() == [len(row.target_ids) for row in train]
    assert train.encoder_tokens.tolist() == [
        sum(len(shards.template.candidate_ids(row.question_ids, ids)) for ids in row.response_ids) for row in train
    ]
    assert {train.n_candidates.dtype, train.target_tokens.dtype, train.encoder_tokens.dtype} == {np.dtype(np.int32)}


def test_a_split_is_a_sequence(root: Path):
    train = ShardSet.open(root).split("train")
    ids = [row.id for row in train]
    assert [train[i].id for i in range(-25, 0)] == ids
    assert [row.id for row in train[8:12]] == ids[8:12]
    assert train[np.int64(10)].id == ids[10]
    for index in (25, -26):
        with pytest.raises(IndexError):
            train[index]


def without_marks(folder: Path) -> None:
    """Make a set one of version 1, whose shards have no column same_as."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["schema_version"] = 1
    for shard in (shard for split in manifest["splits"].values() for shard in split["shards"]):
        path = folder / shard["file"]
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns("same_as"), path)
        shard |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", [1, 2])
def test_identical_candidates_are_marked(
    version: int, rows: list[dict[str, Any]], write_rows: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path,
    without_ray: None,
):  # fmt: skip
    first, second, third = rows[9]["candidates"]
    rows[9]["candidates"] = [first, {**second, "text": first["text"]}, third, {**second, "text": third["text"]}, first]
    files = {"train": str(write_rows("train.jsonl", rows))}
    folder = prepare(PrepareConfig(files, str(tmp_path / "root"), str(tokenizer_folder), rows_per_shard=10))
    if version == 1:
        without_marks(folder)
    train = ShardSet.open(folder).split("train")
    assert train.same_as(9).tolist() == train.same_as(-16).tolist() == [0, 0, 2, 2, 0]
    assert [train.same_as(row).tolist() for row in (2, 10)] == [[0], [0, 1, 2]]
    assert train.same_as(9).dtype == np.int32
    assert len(train[9].texts) == 5


def test_root_and_set_folder_open_the_same(root: Path):
    shards = ShardSet.open(root)
    assert shards.folder == root / (root / "CURRENT").read_text().strip()
    assert ShardSet.open(shards.folder).manifest == shards.manifest
    assert shards.splits == ("train", "test")
    assert shards.models == ("model-0", "model-1", "model-2")
    assert shards.score_names == ("bartscore", "only_here", "rougeL")
    assert len(shards.tokenizer()) == shards.manifest["tokenizer"]["size"]


def test_unknown_splits_and_labels_say_what_there_is(root: Path):
    shards = ShardSet.open(root)
    with pytest.raises(UserError, match="no split dev; it has train, test"):
        shards.split("dev")
    assert shards.split("train").has_label("rougeL") == 24
    assert shards.split("train").has_label("only_here") == 1
    with pytest.raises(UserError, match=r"No row of split test .* only_here; .*bartscore, rougeL.*compute only_here"):
        shards.split("test").has_label("only_here")


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-100])
    else:
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])


@pytest.mark.faults
@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_damaged_shard_is_named_and_rebuilt_by_the_same_command(root: Path, how: str, capsys: pytest.CaptureFixture):
    shards = ShardSet.open(root)
    whole = {path.name: path.read_bytes() for path in shards.folder.glob("*.parquet")}
    path = shards.folder / "train-00001-of-00003.parquet"
    _damage(path, how)
    with pytest.raises(UserError, match=r"train-00001-of-00003\.parquet is damaged .*prepare again"):
        ShardSet.open(root)
    config = PrepareConfig(**{**shards.manifest["config"], "lengths": shards.lengths, "sample": PrepareConfig().sample})
    capsys.readouterr()
    assert prepare(config) == shards.folder
    assert "nothing to do" not in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in shards.folder.glob("*.parquet")} == whole


def test_a_damaged_manifest_another_version_and_another_tokenizer_are_refused(root: Path):
    shards = ShardSet.open(root)
    manifest = shards.folder / "manifest.json"
    manifest.write_text(json.dumps({**shards.manifest, "schema_version": 0}))
    with pytest.raises(UserError, match="version 0"):
        ShardSet.open(root)
    manifest.write_text(json.dumps(shards.manifest)[:-50])
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        ShardSet.open(root)
    manifest.write_text(json.dumps(shards.manifest))
    rules = json.loads((shards.folder / "tokenizer" / "tokenizer.json").read_text())
    rules["model"]["merges"].pop()
    (shards.folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(UserError, match="not the tokenizer"):
        ShardSet.open(root).tokenizer()


def test_a_folder_without_prepared_data_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"python -m data_pipeline\.prepare"):
        ShardSet.open(tmp_path / "none")


def test_a_broken_cache_is_built_anew(root: Path):
    shards = ShardSet.open(root)
    before = shards.split("train")[12].texts
    for path in (shards.folder / ".cache").iterdir():
        path.write_bytes(path.read_bytes()[:64])
    assert ShardSet.open(root).split("train")[12].texts == before


@pytest.mark.faults
@pytest.mark.parametrize("where", [0.01, 0.5, 0.99])
def test_a_cache_with_one_bit_turned_is_said_and_built_anew(root: Path, where: float, caplog: pytest.LogCaptureFixture):
    shards = ShardSet.open(root, verify=False)
    before = [str(row) for row in shards.split("train")]
    path = next(each for each in (shards.folder / ".cache").glob("*.arrow") if each.stem == _first_sha256(shards))
    whole = bytearray(path.read_bytes())
    turned = whole.copy()
    turned[int(where * len(whole))] ^= 4
    path.write_bytes(turned)
    assert [str(row) for row in shards.split("train")] == before
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is damaged; it is built anew from its shard."
    ]
    assert path.read_bytes() == whole
    caplog.clear()
    shards.split("train")
    assert not caplog.records


def _first_sha256(shards: ShardSet) -> str:
    return str(shards.manifest["splits"]["train"]["shards"][0]["sha256"])


def test_a_cache_without_its_checksum_is_built_anew(root: Path):
    shards = ShardSet.open(root)
    before = [str(row) for row in shards.split("train")]
    for path in (shards.folder / ".cache").glob("*.arrow"):  # as if killed before the checksum was written
        path.with_suffix(".crc32").unlink()
        path.write_bytes(path.read_bytes()[::-1])
    assert [str(row) for row in shards.split("train")] == before


def test_a_cache_is_checked_once_in_a_process(root: Path, monkeypatch: pytest.MonkeyPatch):
    shards = ShardSet.open(root)
    shards.split("train")
    monkeypatch.setattr(shard_cache, "_checksum", None)
    assert len(shards.split("train")) == 25


def test_storage_that_does_not_keep_what_is_written_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch):
    write = shard_cache._write_arrow

    def spoil(table: Any, path: Path) -> None:
        write(table, path)
        _damage(path, "altered")

    shards = ShardSet.open(root)
    monkeypatch.setattr(shard_cache, "_write_arrow", spoil)
    monkeypatch.setattr(shard_cache, "_user_cache", lambda: shards.folder / ".other")
    with pytest.raises(UserError, match=r"Cannot write a cache in .* is not what was written"):
        shards.split("train")


def test_no_cache_is_built_of_an_altered_shard_that_nobody_verified(root: Path):
    shards = ShardSet.open(root, verify=False)
    first, second = (shards.folder / f"train-0000{i}-of-00003.parquet" for i in range(2))
    shutil.copyfile(first, second)
    with pytest.raises(UserError, match=r"train-00001-of-00003\.parquet is damaged .*prepare again"):
        shards.split("train")


def test_the_cache_goes_elsewhere_where_the_set_cannot_be_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shards = ShardSet.open(root)
    shutil.rmtree(shards.folder / ".cache", ignore_errors=True)
    (shards.folder / ".cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert len(shards.split("train")[12].texts) == 3
    assert len(list((tmp_path / "home" / "urg" / "shards").glob("*.arrow"))) == 3
    monkeypatch.setattr(shard_cache, "_user_cache", lambda: shards.folder / ".cache")
    with pytest.raises(UserError, match="Cannot write a cache"):
        shards.split("train")


def _read(root: str, barrier: Any, answers: Any) -> None:
    barrier.wait()
    train = ShardSet.open(root).split("train")
    answers.put((len(train), [train[i].id for i in range(len(train))], train.encoder_tokens.tolist()))


@pytest.mark.timeout(300)
def test_processes_may_open_one_set_at_once(root: Path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(3), context.Queue()
    readers = [context.Process(target=_read, args=(str(root), barrier, answers)) for _ in range(3)]
    for reader in readers:
        reader.start()
    found = [answers.get(timeout=100) for _ in readers]
    for reader in readers:
        reader.join()
    train = ShardSet.open(root).split("train")
    assert found == [(25, [row.id for row in train], train.encoder_tokens.tolist())] * 3
    assert not list((ShardSet.open(root).folder / ".cache").glob("*.staged"))
