from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_pipeline.config import PrepareConfig
from data_pipeline.conversion import pieces
from data_pipeline.errors import UserError
from data_pipeline.prepare import prepare
from data_pipeline.shards import ShardSet
from data_pipeline.sources import list_source, shown_input, without_secrets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Write = Callable[..., Path]


def named(source: Any) -> list[tuple[str | None, str]]:
    """(split, last part of the name) of the files of a source."""
    return [(file.split, file.name.rsplit("/", 1)[-1]) for file in list_source(source)]


def contents(source: Any) -> list[bytes]:
    return [b"".join(pieces(file)) for file in list_source(source)]


def test_files_by_name_glob_and_folder(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert named(str(tmp_path)) == [(None, "a.jsonl"), (None, "b.jsonl")]
    assert named(str(tmp_path / "*.txt")) == [(None, "notes.txt")]
    assert [file.path for file in list_source(str(tmp_path / "notes.txt"))] == [str(tmp_path / "notes.txt")]
    with pytest.raises(UserError, match="no file at"):
        list_source(str(tmp_path / "none*"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"There is no file of rows in the folder .*/bare; their names end in \.jsonl"):
        list_source(str(tmp_path / "bare"))


def test_a_folder_tells_its_splits_by_names(write_rows: Write, tmp_path: Path):
    names = ("train_data_prepared.jsonl", "val_data_prepared.jsonl", "test/one.jsonl", "trainer.jsonl", "README.jsonl")
    for name in names:
        write_rows(name, [{}])
    expected = [("train", "train_data_prepared.jsonl"), ("dev", "val_data_prepared.jsonl"), ("test", "one.jsonl")]
    assert named(str(tmp_path)) == expected
    assert named({"dev": str(tmp_path)}) == [("dev", "val_data_prepared.jsonl")]
    with pytest.raises(UserError, match="has no split extra; it has train, dev, test"):
        list_source({"extra": str(tmp_path)})


def test_a_data_folder_is_looked_into_as_hub_datasets_have_it(write_rows: Write, tmp_path: Path):
    for name in ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/validation-0.jsonl"):
        write_rows(name, [{}])
    assert [split for split, _ in named(str(tmp_path))] == ["train", "train", "dev"]
    write_rows("rows.jsonl", [{}])
    assert named(str(tmp_path)) == [(None, "rows.jsonl")]


def test_a_folder_without_a_train_split_is_one_body_of_rows(write_rows: Write, tmp_path: Path):
    write_rows("test.jsonl", [{}])
    assert named(str(tmp_path)) == named(str(tmp_path / "test.jsonl")) == [(None, "test.jsonl")]


def test_a_file_cannot_be_in_two_splits(write_rows: Write, tmp_path: Path):
    path = str(write_rows("a.jsonl", [{}]))
    with pytest.raises(UserError, match="splits train and test"):
        list_source({"train": path, "test": str(tmp_path)})


def test_a_split_that_finds_nothing_is_named(write_rows: Write, tmp_path: Path):
    with pytest.raises(UserError, match=r"Split test: There is no file at .*none\.jsonl"):
        list_source({"train": str(write_rows("a.jsonl", [{}])), "test": str(tmp_path / "none.jsonl")})


@pytest.mark.parametrize("names", [("train.jsonl", "train.parquet"), ("a.jsonl", "b.jsonl.gz")])
def test_files_of_two_formats_in_one_split_are_refused(names: tuple[str, str], write_rows: Write, tmp_path: Path):
    for name in names:
        write_rows(name, [{}])
    with pytest.raises(UserError, match=rf"two formats, .*{names[0]} and .*{names[1]}"):
        list_source(str(tmp_path))


def test_splits_may_differ_in_format(write_rows: Write, tmp_path: Path):
    write_rows("train.jsonl", [{}])
    write_rows("test.parquet", [{}])
    assert named(str(tmp_path)) == [("train", "train.jsonl"), ("test", "test.parquet")]


def test_saved_datasets_are_read_in_their_own_order_and_splits(make_rows: Callable[..., Any], tmp_path: Path):
    import datasets

    rows = make_rows(7)
    plain = datasets.Dataset.from_list(rows[:5])
    plain.save_to_disk(str(tmp_path / "one"), num_shards=2)
    splits = datasets.DatasetDict({"train": plain, "validation": datasets.Dataset.from_list(rows[5:])})
    splits.save_to_disk(str(tmp_path / "all"))
    assert [json.loads(line) for each in contents(str(tmp_path / "one")) for line in each.splitlines()] == rows[:5]
    assert [split for split, _ in named(str(tmp_path / "all"))] == ["train", "dev"]
    assert [json.loads(line) for line in contents(str(tmp_path / "all"))[1].splitlines()] == rows[5:]
    (tmp_path / "all" / "validation" / "state.json").unlink()
    with pytest.raises(UserError, match=r"validation is no whole saved dataset"):
        list_source(str(tmp_path / "all"))


def test_urls_of_any_file_system(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/train.jsonl", b'{"a": 1}\n')
    memory.pipe("/set/val/x.jsonl.gz", gzip.compress(b'{"b": 2}\n'))
    assert named("memory://set") == [("train", "train.jsonl"), ("dev", "x.jsonl.gz")]
    assert contents("memory://set") == [b'{"a": 1}\n', b'{"b": 2}\n']
    assert named("memory://set/*.jsonl") == [(None, "train.jsonl")]
    (tmp_path / "a.jsonl").write_bytes(b"{}")
    (file,) = list_source(f"file://{tmp_path}/a.jsonl")
    assert file.is_local
    with pytest.raises(UserError, match="There is no file at memory://set/none"):
        list_source("memory://set/none")


def test_an_unknown_scheme_and_a_missing_package_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"there is no scheme nothing://"):
        list_source("nothing://bucket/rows.jsonl")

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"gs:// needs a package that is not installed; pip install 'urg\[gcs\]'"):
        list_source("gs://bucket/rows.jsonl")


def test_passwords_and_signatures_are_not_shown():
    assert without_secrets("https://me:secret@host:1/rows.jsonl?X-Signature=abc") == "https://host:1/rows.jsonl"
    assert without_secrets("/a/b?c.jsonl") == "/a/b?c.jsonl"
    assert shown_input({"train": "s3://key:secret@bucket/a"}) == {"train": "s3://bucket/a"}


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is told to be offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill_cache(cache: Path, names: tuple[str, ...] = ("train_data.jsonl", "test_data.jsonl")) -> None:
    """A cached repository as the client leaves it: files are links to blobs."""
    repository = cache / "datasets--org--set"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        (repository / "blobs" / name).write_text("{}\n")
        os.symlink(f"../../blobs/{name}", repository / "snapshots" / COMMIT / name)


def test_the_commit_stands_in_the_manifest(
    without_ray: None, hub_cache: Path, tokenizer_folder: Path, make_rows: Callable[..., Any], tmp_path: Path
):
    fill_cache(hub_cache)
    for name in ("train", "test"):
        blob = hub_cache / "datasets--org--set" / "blobs" / f"{name}_data.jsonl"
        blob.write_text("".join(json.dumps(row) + "\n" for row in make_rows(3, name)))
    config = PrepareConfig("hf:org/set", output=str(tmp_path / "out"), tokenizer=str(tokenizer_folder))
    sources = ShardSet.open(prepare(config)).manifest["sources"]
    assert [(source["split"], source["revision"]) for source in sources] == [("train", COMMIT), ("test", COMMIT)]
    assert sources[0]["file"] == f"hf:org/set@{COMMIT}/train_data.jsonl"


@pytest.mark.parametrize("name", ["hf:org/set", "hf:org/set@main", f"hf:org/set@{COMMIT}"])
def test_the_hubs_cache_is_honoured_offline(name: str, hub_cache: Path):
    fill_cache(hub_cache)
    files = list_source(name)
    assert [(file.split, file.name, file.revision) for file in files] == [
        ("train", f"hf:org/set@{COMMIT}/train_data.jsonl", COMMIT),
        ("test", f"hf:org/set@{COMMIT}/test_data.jsonl", COMMIT),
    ]
    assert all(file.is_local for file in files)


@pytest.mark.parametrize("cached", [("test_data.jsonl",), ("test_data.jsonl", "val_data.jsonl")])
def test_a_cache_without_the_train_split_is_not_taken_for_the_whole_set(cached: tuple[str, ...], hub_cache: Path):
    fill_cache(hub_cache, cached)
    for source in ("hf:org/set", {"test": "hf:org/set"}):
        with pytest.raises(
            UserError, match=rf"Of hf:org/set only {', '.join(cached)} is cached, without a train split"
        ):
            list_source(source)


def test_a_cache_that_names_no_split_is_one_body_of_rows(hub_cache: Path):
    fill_cache(hub_cache, ("rows.jsonl",))
    assert named("hf:org/set") == [(None, "rows.jsonl")]


def test_a_hub_that_is_out_of_reach_is_one_sentence(hub_cache: Path):
    with pytest.raises(UserError, match=r"dataset org/none at revision v1.*cannot be reached \(HF_HUB_OFFLINE is set"):
        list_source("hf:org/none@v1")
    fill_cache(hub_cache)
    with pytest.raises(UserError, match="cannot be reached"):
        list_source("hf:org/set@another")
    with pytest.raises(UserError, match=r"hf:set is no hub dataset; write hf:owner/name"):
        list_source("hf:set")


class FakeHub(BaseHTTPRequestHandler):
    """One dataset repository, org/set, of one file, as the hub's protocol gives it."""

    content = b'{"id": 1}\n'
    etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/datasets/org/set/revision/main":
            self.answer(
                json.dumps({"id": "org/set", "sha": COMMIT, "siblings": [{"rfilename": "train.jsonl"}]}).encode()
            )
        elif path == f"/api/datasets/org/set/tree/{COMMIT}":
            size = len(self.content)
            entry = {"type": "file", "path": "train.jsonl", "size": size, "oid": self.etag}
            self.answer(json.dumps([entry, {**entry, "path": "large.bin"}]).encode())
        elif path == f"/datasets/org/set/resolve/{COMMIT}/train.jsonl":
            self.answer(self.content, {"ETag": f'"{self.etag}"', "X-Repo-Commit": COMMIT})
        elif path == "/":
            self.answer(b"")
        else:
            self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def fake_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in (
        ("HF_HUB_OFFLINE", False),
        ("ENDPOINT", url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
    ):
        monkeypatch.setattr(constants, name, value)
    yield url
    server.shutdown()
    server.server_close()


@pytest.mark.timeout(300)
def test_main_is_resolved_to_a_commit_and_downloaded_once(fake_hub: str, hub_cache: Path, monkeypatch: Any):
    from huggingface_hub import constants

    (file,) = list_source("hf:org/set")
    assert (file.split, file.name, file.revision) == ("train", f"hf:org/set@{COMMIT}/train.jsonl", COMMIT)
    assert Path(file.path).read_bytes() == FakeHub.content
    with pytest.raises(UserError, match="org/other at revision main"):
        list_source("hf:org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert list_source("hf:org/set") == [file]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_s3_over_its_real_protocol(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("rows")
        system.pipe("rows/set/train.jsonl", b'{"a": 1}\n')
        system.pipe("rows/set/test/x.jsonl.gz", gzip.compress(b'{"b": 2}\n'))
        files = list_source("s3://rows/set")
        assert [(file.split, file.name) for file in files] == [
            ("train", "s3://rows/set/train.jsonl"),
            ("test", "s3://rows/set/test/x.jsonl.gz"),
        ]
        assert contents("s3://rows/set") == [b'{"a": 1}\n', b'{"b": 2}\n']
        assert all(file.stamp() for file in files)
        with pytest.raises(UserError, match="no file at s3://rows/none"):
            list_source("s3://rows/none")
        with pytest.raises(UserError, match=r"s3://no-such-bucket"):
            list_source("s3://no-such-bucket/x.jsonl")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.mark.timeout(300)
def test_https_is_read_like_any_other(fake_hub: str):
    url = f"{fake_hub}/datasets/org/set/resolve/{COMMIT}/train.jsonl"
    assert contents(url + "?X-Signature=secret") == [FakeHub.content]
    (file,) = list_source(url + "?X-Signature=secret")
    assert file.name == url
    with pytest.raises(UserError, match=r"nothing\.jsonl is cut off, damaged or out of reach") as caught:
        contents(f"{fake_hub}/nothing.jsonl?X-Signature=secret")
    assert "secret" not in str(caught.value)
