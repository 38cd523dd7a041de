from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from data_pipeline import commit, plan
from data_pipeline.config import Lengths, PrepareConfig, SampleSize
from data_pipeline.errors import UserError
from data_pipeline.prepare import main, prepare
from data_pipeline.shards import ShardSet

Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., PrepareConfig]:
    """config(input, **changes): a configuration with small shards, its output in tmp_path/out."""

    def make(source: Any, **changes: Any) -> PrepareConfig:
        settings = {"output": str(tmp_path / "out"), "tokenizer": str(tokenizer_folder), "rows_per_shard": 8, **changes}
        return PrepareConfig(source if isinstance(source, dict) else str(source), **settings)

    return make


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a set but the manifest (which names paths) and the reader's cache."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "manifest.json"}


def quarantine(folder: Path) -> list[tuple[int, str]]:
    """(line, reason) of every rejected row."""
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [(record["line"], record["reason"]) for record in map(json.loads, lines)]


BAD_LINES = {
    "bad_json": b'{"id": "x", ',
    "bad_encoding": '{"id": "é"}'.encode("latin-1"),
    "not_an_object": b"[]",
    "missing_key": b'{"instruction": "q", "candidates": [{"model": "m", "text": "t"}]}',
    "no_candidates": b'{"id": "n", "instruction": "q", "candidates": []}',
    "empty_question": b'{"id": "e", "candidates": [{"model": "m", "text": "t"}]}',
    "bad_candidate": b'{"id": "c", "instruction": "q", "candidates": [{"model": "m", "text": null}]}',
}


@pytest.mark.timeout(300)
def test_on_ray_as_without_it_byte_for_byte(
    ray_started: None, config: Callable[..., PrepareConfig], make_rows: Rows, write_rows: Write, tmp_path: Path
):
    rows = [*make_rows(40), *BAD_LINES.values(), *make_rows(30, "more"), make_rows(40)[7]]
    path = write_rows("rows.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "RANGE_BYTES", 8000)  # many ranges, so that order and line numbers are put to the test
        on_ray = prepare(config(path, output=str(tmp_path / "ray")))
        again = prepare(config(path, output=str(tmp_path / "again")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_in_order", lambda tasks, work: [work(task) for task in tasks])
        plain = prepare(config(path, output=str(tmp_path / "plain")))
    assert content(on_ray) == content(again) == content(plain)
    assert on_ray.name == again.name == plain.name
    assert quarantine(on_ray) == [*zip(range(41, 48), BAD_LINES, strict=True), (78, "duplicate_id")]
    assert [path for path in content(on_ray) if path.endswith(".parquet")]


@pytest.mark.timeout(300)
def test_a_workers_full_disk_arrives_as_itself(ray_started: None):
    with pytest.raises(OSError, match="No space left") as caught:
        list(plan._in_order([{"a": 1}], _disk_full))
    assert caught.value.errno == errno.ENOSPC


def _disk_full(task: Any) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.timeout(300)
def test_the_command_starts_ray_itself_and_prints_plain_lines(
    make_rows: Rows, write_rows: Write, tokenizer_folder: Path, tmp_path: Path
):
    path, root = write_rows("rows.jsonl", make_rows(30)), tmp_path / "out"
    command = [sys.executable, "-m", "data_pipeline.prepare", "--input", str(path), "--output", str(root)]
    command += ["--tokenizer", str(tokenizer_folder), "--lengths.response", "9"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=Path(__file__).parents[2])
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1] == (
        f"next: python -m urg.train --config scratch --data.label bartscore --data.shards {root}"
    )
    assert f"prepared: {ShardSet.open(root).folder}" in first.stdout
    assert ShardSet.open(root).lengths.response == 9


def test_counts_add_up_in_every_split(
    without_ray: None, config: Callable[..., PrepareConfig], make_rows: Rows, write_rows: Write
):
    good = make_rows(20)
    files = {
        "train": str(write_rows("a.jsonl", [*good[:5], b"", *BAD_LINES.values(), b"  ", *good[5:], good[0]])),
        "test": str(write_rows("b.jsonl", [good[3], *make_rows(2, "test")])),
    }
    folder = prepare(config(files))
    manifest = ShardSet.open(folder).manifest
    reasons = dict.fromkeys(BAD_LINES, 1) | {"duplicate_id": 1, "duplicate_id_across_splits": 1}
    assert manifest["counts"] == {
        "train": {"input": 28, "kept": 19, "rejected": dict(sorted(reasons.items()))},
        "test": {"input": 3, "kept": 3, "rejected": {}},
    }
    assert manifest["totals"] == {"input": 31, "kept": 22, "rejected": dict(sorted(reasons.items()))}
    assert quarantine(folder) == [
        *zip(range(7, 14), BAD_LINES, strict=True),
        (30, "duplicate_id"),
        (4, "duplicate_id_across_splits"),
    ]


def test_of_an_id_in_several_splits_the_row_of_the_latest_use_stays_whatever_the_order(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    make_rows: Rows,
    write_rows: Write,
    capsys: pytest.CaptureFixture[str],
):
    rows = make_rows(7)
    numbers = {"train": [0, 1, 2, 3], "dev": [1, 4, 6], "test": [1, 2, 4, 5]}
    files = {name: str(write_rows(f"{name}.jsonl", [rows[i] for i in own])) for name, own in numbers.items()}
    for order in (("train", "dev", "test"), ("test", "dev", "train")):
        shards = ShardSet.open(prepare(config({name: files[name] for name in order})))
        kept = {name: [int(row_id.removeprefix("row/")) for row_id in shards.split(name).ids] for name in order}
        assert kept == {"train": [0, 3], "dev": [6], "test": [1, 2, 4, 5]}
        assert "rejected: duplicate_id_across_splits 4\n" in capsys.readouterr().out
        records = map(json.loads, (shards.folder / "quarantine.jsonl").read_text().splitlines())
        told = {(Path(each["file"]).name, each["line"]): each["message"] for each in records}
        assert set(told) == {("train.jsonl", 2), ("train.jsonl", 3), ("dev.jsonl", 1), ("dev.jsonl", 2)}
        assert all("in the test split too; that one was kept" in message for message in told.values())


def test_a_duplicate_of_a_rejected_row_is_kept(
    without_ray: None, config: Callable[..., PrepareConfig], make_rows: Rows, write_rows: Write
):
    (row,) = make_rows(1)
    folder = prepare(config({"train": str(write_rows("a.jsonl", [{**row, "candidates": []}, row]))}))
    assert quarantine(folder) == [(1, "no_candidates")]


def test_rows_that_are_odd_but_good(without_ray: None, config: Callable[..., PrepareConfig], write_rows: Write):
    answers = [{"model": "m", "text": text} for text in ("", "x" * 100_000, "a\ud800\x00\u202e", "the cat " * 12_500)]
    rows = [
        {"id": "one", "instruction": "", "input": "only input", "candidates": answers[:1]},
        {"id": "four", "instruction": "q", "candidates": answers, "cmp_results": "null"},
    ]
    shards = ShardSet.open(prepare(config({"train": str(write_rows("a.jsonl", rows))}, lengths=Lengths(response=16))))
    one, four = shards.split("train")
    assert one.texts == ("",)
    assert len(one.response_ids[0]) == 0
    assert four.texts[1] == "x" * 100_000
    assert four.texts[2] == "a\ufffd\x00\u202e"
    assert [len(ids) for ids in four.response_ids] == [0, 16, len(four.response_ids[2]), 16]
    assert shards.manifest["splits"]["train"]["tokens"]["response"]["truncated"] == 2
    assert shards.score_names == ()


def test_missing_scores_and_aliases_are_reported(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    capsys: pytest.CaptureFixture[str],
):
    rows = make_rows(4)
    for candidate, score in zip(rows[3]["candidates"], ("0.5", math.nan, [1]), strict=True):
        candidate["scores"]["rougeL"] = score
    rows[3]["candidates"][2]["model"] = "model-0"
    rows[1]["candidates"][0]["scores"]["bartscore"] = 0.0
    rows[2]["candidates"][1]["model"] = "old"
    shards = ShardSet.open(prepare(config({"train": str(write_rows("a.jsonl", rows))}, aliases={"old": "model-1"})))
    assert shards.manifest["repairs"] == {
        "zero_scores_taken_as_missing": {"bartscore": 1},
        "unusable_scores": {"rougeL": {"NaN": 1, "a list": 1, "text": 1}},
        "repeated_models": {"model-0": 1},
        "aliased_models": {"old": {"to": "model-1", "candidates": 1}},
    }
    said = capsys.readouterr().out.splitlines()
    assert "scores that are no numbers, taken as missing: rougeL 3 (NaN 1, a list 1, text 1)" in said
    assert "candidates whose model has answered before in the same row: model-0 1 (kept)" in said
    bartscore = shards.manifest["splits"]["train"]["scores"]["bartscore"]
    values = [c["scores"]["bartscore"] for row in rows for c in row["candidates"] if c["scores"]["bartscore"] != 0.0]
    assert (bartscore["values"], bartscore["missing"], bartscore["rows"]) == (11, 1, 4)
    assert bartscore["mean"] == pytest.approx(sum(values) / 11)
    assert (bartscore["min"], bartscore["max"]) == (min(values), max(values))
    assert shards.models == ("model-0", "model-1", "model-2")


def test_only_configured_models_are_accepted(
    without_ray: None, config: Callable[..., PrepareConfig], write_rows: Write, make_rows: Rows
):
    rows = make_rows(3)
    rows[1]["candidates"][0]["model"] = "stranger"
    source = {"train": str(write_rows("a.jsonl", rows))}
    folder = prepare(config(source, models=["model-0", "model-1", "model-2"]))
    assert quarantine(folder) == [(2, "unknown_model")]
    assert "stranger" in ShardSet.open(prepare(config(source))).models


def test_a_rerun_does_nothing_and_another_configuration_gets_its_own_folder(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    path = write_rows("a.jsonl", make_rows(30))
    first = prepare(config(path))
    times = {file: file.stat().st_mtime_ns for file in first.rglob("*")}
    capsys.readouterr()
    assert prepare(config(path)) == first
    assert "nothing to do" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in first.rglob("*")} == times
    second = prepare(config(path, lengths=Lengths(question=4)))
    write_rows("a.jsonl", make_rows(31))
    third = prepare(config(path))
    assert len({first, second, third}) == 3
    assert ShardSet.open(tmp_path / "out").folder == third
    write_rows("a.jsonl", make_rows(30))
    assert prepare(config(path)) == first
    assert ShardSet.open(tmp_path / "out").folder == first
    assert not list((tmp_path / "out").glob(".staging*"))


@pytest.mark.parametrize("part", ["shard", "tokenizer"])
def test_a_damaged_set_is_made_again(
    without_ray: None, config: Callable[..., PrepareConfig], write_rows: Write, make_rows: Rows, part: str
):
    path = write_rows("a.jsonl", make_rows(30))
    folder = prepare(config(path))
    file = min(folder.glob("train*.parquet")) if part == "shard" else folder / "tokenizer" / "tokenizer.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert prepare(config(path)) == folder
    assert file.read_bytes() == whole
    assert not list(folder.parent.glob(".staging*"))


@pytest.mark.parametrize("failing", [0, 2])
def test_a_full_disk_leaves_what_was_there_and_the_next_run_succeeds(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
):
    first = prepare(config(write_rows("a.jsonl", make_rows(10))))
    larger = config({"train": str(write_rows("b.jsonl", make_rows(30)))})
    written = []

    def write_shard(path: Path, *rest: Any) -> Any:
        written.append(path)
        if len(written) > failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *rest)

    real = plan.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(plan, "write_shard", write_shard)
        with pytest.raises(UserError, match="No space left on device"):
            prepare(larger)
    assert ShardSet.open(tmp_path / "out").folder == first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([".lock", "CURRENT", first.name])
    assert len(ShardSet.open(prepare(larger)).split("train")) == 30


def test_what_a_killed_run_left_is_swept(
    without_ray: None, config: Callable[..., PrepareConfig], write_rows: Write, make_rows: Rows, tmp_path: Path
):
    (tmp_path / "out" / ".staging-killed").mkdir(parents=True)
    prepare(config(write_rows("a.jsonl", make_rows(5))))
    assert not (tmp_path / "out" / ".staging-killed").exists()


def test_two_at_once_in_one_root_are_refused(config: Callable[..., PrepareConfig], tmp_path: Path):
    with commit.locked(tmp_path / "out"), pytest.raises(UserError, match="Another process"):
        prepare(config(tmp_path / "a.jsonl"))


def test_an_output_that_cannot_be_written_is_refused(
    config: Callable[..., PrepareConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "out", Path("/sys/out")):  # a file in the way; read-only, for root too
        with pytest.raises(UserError, match="Cannot write to the folder"):
            prepare(config(tmp_path / "a.jsonl", output=str(output)))

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match="Permission denied"):
        prepare(config(tmp_path / "a.jsonl"))


def test_input_without_a_valid_row_says_why(
    without_ray: None, config: Callable[..., PrepareConfig], write_rows: Write, make_rows: Rows, tmp_path: Path
):
    bad = write_rows("bad.jsonl", [b"{", b"[]", b"{"])
    with pytest.raises(UserError, match=r"rejected: bad_json 2, not_an_object 1\); for example .*bad\.jsonl line 1"):
        prepare(config(bad))
    with pytest.raises(UserError, match="no valid row in split test"):
        prepare(config({"train": str(write_rows("a.jsonl", make_rows(3))), "test": str(bad)}))
    with pytest.raises(UserError, match="blank lines only"):
        prepare(config(write_rows("blank.jsonl", [b"", b" "])))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl is empty"):
        prepare(config(tmp_path / "empty.jsonl"))
    assert not (tmp_path / "out" / "CURRENT").exists()


def test_rows_lost_on_the_way_are_never_committed(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    real = plan.read_places
    monkeypatch.setattr(plan, "read_places", lambda *places: real(*places)[1:])
    with pytest.raises(RuntimeError, match="Rows were lost"):
        prepare(config({"train": str(write_rows("a.jsonl", make_rows(5)))}))
    assert not (tmp_path / "out" / "CURRENT").exists()


@pytest.mark.parametrize("lost", ["good", "rejected"])
def test_rows_lost_in_the_survey_are_never_committed(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
):
    def losing(part: Any, **settings: Any) -> dict[str, Any]:
        answer = real(part, **settings)
        if lost == "rejected":
            answer["rejected"].pop()
            return answer
        for column in ("numbers", "offsets", "sizes", "prompts"):
            answer[column].pop()
        return answer | {"digests": answer["digests"][:-32]}

    real = plan.survey_range
    monkeypatch.setattr(plan, "survey_range", losing)
    with pytest.raises(RuntimeError, match="Rows were lost: 6 are in the input"):
        prepare(config({"train": str(write_rows("a.jsonl", [*make_rows(5), b"", b"{"]))}))
    assert not (tmp_path / "out" / "CURRENT").exists()


def test_the_sample_is_generated_once_and_marked(
    without_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    size = SampleSize(30, 4, 5, seed=1)
    config = PrepareConfig(output=str(tmp_path / "out"), tokenizer="train", vocab_size=300, sample=size)
    main(config)
    shards = ShardSet.open(tmp_path / "out")
    assert [len(shards.split(name)) for name in shards.splits] == [30, 4, 5]
    assert shards.manifest["generated"] is True
    assert "data: generated" in capsys.readouterr().out
    assert len(shards.tokenizer()) <= 300
    main(config)
    told = capsys.readouterr().out
    assert "nothing to do" in told
    assert "generating" not in told
    assert "training" not in told


def test_what_a_killed_worker_left_half_written_is_no_part_of_the_set(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
):
    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    real = plan.write_shard

    def killed_once(*arguments: Any) -> Any:
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "replace", killed)
            patch.setattr(os, "getpid", lambda: 1)
            real(*arguments)
        assert list(arguments[0].parent.glob("*.1.staged"))
        return real(*arguments)

    monkeypatch.setattr(plan, "write_shard", killed_once)
    folder = prepare(config(write_rows("a.jsonl", make_rows(20))))
    assert list(folder.glob("*.parquet"))
    assert not list(folder.rglob("*.staged"))


def test_a_tokenizer_for_hashed_splits_sees_the_train_split_alone(
    without_ray: None, config: Callable[..., PrepareConfig], write_rows: Write, make_rows: Rows, tmp_path: Path
):
    from data_pipeline.cleaning import id_digest, split_of

    rows = make_rows(40)
    for row in rows:
        if split_of(id_digest(row["id"]), PrepareConfig().fractions) != "train":
            row["output"] = "zzqqzzqq " * 50
    shards = ShardSet.open(prepare(config(write_rows("a.jsonl", rows), tokenizer="train", vocab_size=400)))
    assert not [piece for piece in shards.tokenizer().get_vocab() if "zq" in piece or "qz" in piece]


def test_tokens_are_those_of_any_kind_of_tokenizer(
    without_ray: None,
    config: Callable[..., PrepareConfig],
    write_rows: Write,
    make_rows: Rows,
    any_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
):
    any_tokenizer.save_pretrained(str(tmp_path / "own"))
    files = {"train": str(write_rows("a.jsonl", make_rows(10)))}
    row = ShardSet.open(prepare(config(files, tokenizer=str(tmp_path / "own")))).split("train")[9]
    for text, ids in zip(row.texts, row.response_ids, strict=True):
        expected = any_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids.tolist() == list(expected)[: Lengths().response]


def test_real_rows_are_taken_as_they_are(
    without_ray: None, config: Callable[..., PrepareConfig], shared_data: Path, write_rows: Write
):
    lines = (shared_data / "pandalm_pairwise.jsonl").read_bytes().splitlines()
    lines += (shared_data / "alpaca_eval.jsonl").read_bytes().splitlines()[:30]
    lines += (shared_data / "oasst_eval.jsonl").read_bytes().splitlines()[:30]
    shards = ShardSet.open(prepare(config({"train": str(write_rows("a.jsonl", lines))})))
    train = shards.split("train")
    assert len(train) == 189
    assert train.n_candidates.tolist() == [5] * 129 + [12] * 60
    assert train[0].cmp_results == json.loads(json.loads(lines[0])["cmp_results"])
    assert len(train[0].target_ids) == 0
    assert train.has_label("judge_gpt4turbo_vs_gpt4turbo") == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows_per_shard": 0}, "rows_per_shard is 0"),
        ({"fractions": {"train": 0.5}}, "add up to 1"),
        ({"fractions": {"train": 1.5, "dev": -0.5}}, "add up to 1"),
    ],
)
def test_settings_are_checked_on_construction(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        PrepareConfig(**changes)
