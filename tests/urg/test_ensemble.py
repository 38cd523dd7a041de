"""The Python API and the command: rank and fuse, in order, with nothing lost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.train_tokenizer import save_tokenizer, train_tokenizer
from urg.config import EnsembleConfig
from urg.ensemble import Ensemble, Fused, Query, main
from urg.ensemble_rows import lines_at_once
from urg.model import URG, Settings

TEXTS = ["The cup is in the hall.", "In the shop, I think.", "No idea.", "", "The cup is in the shop. The pen too."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained URG with a tokenizer of its own."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    model = URG.from_scratch(len(tokenizer), Settings(k=2, response_tokens=20, target_tokens=6), **shape)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> Ensemble:
    return Ensemble.from_pretrained(folder)


def test_a_ranking_has_a_score_for_each_candidate_and_orders_by_it(ensemble: Ensemble) -> None:
    ranking = ensemble.rank("Where is the cup?", TEXTS)
    assert len(ranking.scores) == len(TEXTS)
    assert sorted(ranking.order) == list(range(len(TEXTS)))
    assert [ranking.scores[i] for i in ranking.order] == sorted(ranking.scores, reverse=True)


def test_what_counts_for_a_score_is_the_models_own_and_the_question_its_own_length(folder: Path) -> None:
    """As training packs a row: the response begins at its mark."""
    own = Ensemble.from_pretrained(folder)
    ids, question, _ = own._candidate_ids(Query("Where is the cup?", tuple(TEXTS), "The hall."))
    assert {int(one[question]) for one in ids} == {own.template.response_id}
    scores = own.rank("Where is the cup?", TEXTS).scores
    own.model.settings = dataclasses.replace(own.model.settings, score_tokens="response")
    assert own.rank("Where is the cup?", TEXTS).scores != scores


def test_equal_candidates_are_ranked_by_index(ensemble: Ensemble) -> None:
    assert ensemble.rank("Where?", ["the same"] * 4).order == (0, 1, 2, 3)


def test_batching_and_order_change_nothing(folder: Path, ensemble: Ensemble) -> None:
    queries = [Query("Where is the cup?", tuple(TEXTS[:n]), "The hall.") for n in (5, 1, 3, 2)]
    one_by_one = Ensemble.from_pretrained(folder, batch_size=1).rank_and_fuse_batch(queries, num_beams=2)
    together = ensemble.rank_and_fuse_batch(queries, num_beams=2)
    for alone, batched in zip(one_by_one, together, strict=True):
        assert alone.text == batched.text
        assert alone.used == batched.used
        assert alone.ranking.scores == pytest.approx(batched.ranking.scores, abs=1e-6)
    reversed_ = ensemble.rank_and_fuse("Where is the cup?", TEXTS[::-1], "The hall.", num_beams=2)
    assert reversed_.text == together[0].text
    assert reversed_.ranking.scores[::-1] == pytest.approx(together[0].ranking.scores, abs=1e-6)


def test_queries_of_like_length_are_taken_together_within_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most batch_size of them, and so many tokens with padding, but for one that has more by itself."""
    own = Ensemble.from_pretrained(folder, batch_size=3)
    long, short = ("The cup is in the hall. " * 9,) * 5, ("No.", "In the shop.")
    queries = [Query("Where?", long if i % 2 else short) for i in range(8)]
    queries[3] = Query("Where?", long * 9)
    monkeypatch.setattr("urg.ensemble.TOKENS_AT_ONCE", 250)
    groups = [(rows, [sum(map(len, ids)) for ids, *_ in encoded]) for rows, encoded in own._groups(queries)]
    assert sorted(row for rows, _ in groups for row in rows) == list(range(8))
    assert all(len(rows) <= 3 for rows, _ in groups)
    assert all(len(rows) * max(lengths) <= 250 or len(rows) == 1 for rows, lengths in groups)
    assert groups[0][0] == [3], "alone, as it has more than all may have"
    assert [row % 2 for rows, _ in groups for row in rows] == [1] * 4 + [0] * 4, "the long ones first"
    rankings = own.rank_batch(queries)
    assert [len(ranking.scores) for ranking in rankings] == [len(query.candidates) for query in queries]
    for ranking, query in zip(rankings, queries, strict=True):
        alone = own.rank(query.instruction, query.candidates)
        assert ranking.scores == pytest.approx(alone.scores, rel=1e-5, abs=0)


def test_tokenizing_goes_on_in_another_thread_and_its_errors_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Ensemble.from_pretrained(folder, batch_size=1)
    read, makers = own._candidate_ids, []

    def fail_at_third(query: Query) -> Any:
        makers.append(threading.current_thread().name)
        if len(makers) == 3:
            raise MemoryError("third")
        return read(query)

    monkeypatch.setattr(own, "_candidate_ids", fail_at_third)
    with pytest.raises(MemoryError, match="third"):
        own.rank_and_fuse_batch([Query("Where?", ("a", "b"))] * 4, num_beams=1)
    assert len(makers) == 3
    assert "MainThread" not in makers
    assert not [thread for thread in threading.enumerate() if thread.name in makers]


def test_at_most_k_candidates_are_used(ensemble: Ensemble) -> None:
    assert len(ensemble.rank_and_fuse("Where?", TEXTS).used) == 2
    assert len(ensemble.rank_and_fuse("Where?", TEXTS, k=4).used) == 4
    assert len(ensemble.rank_and_fuse("Where?", TEXTS[:1]).used) == 1


def test_a_gap_takes_fewer_and_says_which(folder: Path) -> None:
    own = Ensemble.from_pretrained(folder)
    scores = own.rank("Where?", TEXTS).scores
    high = sorted(scores, reverse=True)
    gap = math.log(high[0] / high[2]) / 2 + math.log(high[0] / high[1]) / 2  # the two best are within it
    order = own.rank("Where?", TEXTS).order
    assert own.rank_and_fuse("Where?", TEXTS, k=4, k_gap=gap).used == order[:2]
    assert own.rank_and_fuse("Where?", TEXTS, k_gap=0.0).used == order[:1]
    assert own.rank_and_fuse("Where?", TEXTS, k=4, k_gap=gap).text == own.fuse("Where?", TEXTS, k=2)
    own.model.settings = dataclasses.replace(own.model.settings, k=4, k_gap=gap)
    assert own.rank_and_fuse("Where?", TEXTS).used == order[:2]
    assert own.rank_and_fuse("Where?", TEXTS, k=4).used == order[:4]  # as many as are asked for
    for bad in (-1, float("nan"), float("inf"), "0.5"):
        with pytest.raises(UserError, match=r"k_gap=.*: give 0 or more"):
            own.fuse("Where?", TEXTS, k_gap=bad)


@pytest.mark.parametrize("option", ["k", "num_beams", "max_new_tokens"])
def test_options_below_1_are_named(ensemble: Ensemble, option: str) -> None:
    with pytest.raises(UserError, match=f"{option}=0: give 1 or more"):
        ensemble.fuse("Where?", TEXTS, **{option: 0})


def test_a_long_text_is_cut_and_an_empty_batch_is_empty(ensemble: Ensemble) -> None:
    assert ensemble.rank("Where?", ["word " * 20000, "b"]).order
    assert ensemble.rank_and_fuse_batch([]) == []
    with pytest.raises(UserError, match="no candidates"):
        ensemble.rank("Where?", [])
    with pytest.raises(UserError, match="not one text"):
        ensemble.rank("Where?", "abc")
    with pytest.raises(UserError, match="list of texts"):
        ensemble.rank("Where?", [1, 2])  # type: ignore[list-item]
    with pytest.raises(UserError, match="candidates must be a list of texts, not None"):
        ensemble.rank("Where?", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="k='3': give 1 or more"):
        ensemble.fuse("Where?", TEXTS, k="3")


@pytest.mark.parametrize("value", [5, None])
@pytest.mark.parametrize("name", ["instruction", "input"])
def test_a_question_that_is_no_text_is_named(ensemble: Ensemble, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} must be a text, not {value}"):
        ensemble.rank(**{"instruction": "Where?", "candidates": TEXTS, name: value})


def test_precision_has_the_names_that_training_has(folder: Path) -> None:
    half = Ensemble.from_pretrained(folder, dtype="bf16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype='float16': choose fp32 or bf16"):
        Ensemble.from_pretrained(folder, dtype="float16")


def test_a_text_does_not_begin_with_the_space_of_its_first_word(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ensemble.tokenizer(" The cup", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ensemble.tokenizer.decode(ids[0]) == " The cup"
    monkeypatch.setattr(ensemble.model, "fuse", lambda *_, **__: ids)
    assert ensemble.fuse("Where?", TEXTS) == "The cup"


def test_cut_texts_are_counted(ensemble: Ensemble) -> None:
    long = "word " * 20000
    assert ensemble.rank("Where?", ["a", long, long]).cut == 2
    assert ensemble.rank("Where?", ["a"], input=long).cut == 1
    assert ensemble.rank_and_fuse("Where?", TEXTS).ranking.cut == 0


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}], ids=["empty folder", "no weights"])
def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="is no URG model"):
        Ensemble.from_pretrained(tmp_path)


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """run(lines, option=value, …) → what the command writes for these lines."""

    def call(lines: list[bytes], **options: Any) -> list[dict[str, Any]]:
        source, target = tmp_path / "in.jsonl", tmp_path / "out" / "out.jsonl"
        source.write_bytes(b"\n".join(lines) + b"\n")
        main(EnsembleConfig(str(folder), source, target, batch_size=2, num_beams=1, **options))
        return [json.loads(line) for line in target.read_text().splitlines()]

    return call


def test_bad_rows_are_reported_in_place_and_nothing_is_lost(run: Callable[..., list[dict[str, Any]]]) -> None:
    good = json.dumps({"id": "a", "instruction": "Where?", "candidates": TEXTS}).encode()
    objects = json.dumps({"id": "b", "input": "Where?", "candidates": [{"text": "x"}, {"text": "y"}]}).encode()
    bad = [b"{", b'"x"', b'{"candidates": ["x"]}', b'{"instruction": "x", "candidates": []}', b"\xff\xfe"]
    bad.append(b'{"instruction": "x", "candidates": [{"no": 1}]}')
    lone_surrogate = rb'{"id": null, "instruction": "x \ud800", "candidates": ["\ud800", "y"]}'
    rows = run([good, *bad, objects, lone_surrogate])
    assert [row["id"] for row in rows] == ["a", "2", "3", "4", "5", "6", "7", "b", "9"]
    assert ["error" in row for row in rows] == [False] + [True] * 6 + [False] * 2
    assert all(f"line {number}: " in row["error"] for number, row in enumerate(rows[1:7], start=2))
    assert {"text", "scores", "order", "used"} <= rows[0].keys()


def test_an_id_comes_back_as_it_was_given(run: Callable[..., list[dict[str, Any]]]) -> None:
    ids = [7, "7", 1.5, ["a", {"b": None}], False, ""]
    rows = run([json.dumps({"id": i, "instruction": "Where?", "candidates": ["x"]}).encode() for i in ids])
    assert [row["id"] for row in rows] == ids
    assert [type(row["id"]) for row in rows] == [type(i) for i in ids]


def test_the_summary_counts_reasons_cuts_and_repeated_ids(
    run: Callable[..., list[dict[str, Any]]], capsys: Any
) -> None:
    good = [{"id": i, "instruction": "Where?", "candidates": ["x", "word " * 999]} for i in (1, 1, "1")]
    bad = [{"id": 2, "instruction": "x", "candidates": []}, {"id": 3, "instruction": "x"}, {"id": 4, "candidates": "x"}]
    rows = run([*(json.dumps(row).encode() for row in (*good, *bad)), b"{"])
    said = capsys.readouterr().err
    assert "7 rows: 3 answered, 4 with an error (no_candidates 3, bad_json 1)" in said
    assert "3 texts in 3 rows were cut" in said
    assert "1 rows have the id of an earlier row" in said
    assert [row.get("cut") for row in rows] == [1, 1, 1, None, None, None, None]
    assert [row.get("reason") for row in rows] == [None, None, None, *["no_candidates"] * 3, "bad_json"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(folder: Path, device: str) -> None:
    with pytest.raises(UserError, match="choose cpu"):
        Ensemble.from_pretrained(folder, device=device)


def test_the_command_takes_a_gap(run: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = run([json.dumps({"instruction": "Where?", "candidates": TEXTS}).encode()], k=4, k_gap=0.0)
    assert row["used"] == row["order"][:1]


def test_rank_only_writes_no_text(run: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = run([json.dumps({"instruction": "Where?", "candidates": TEXTS}).encode()], rank_only=True)
    assert row.keys() == {"id", "scores", "order", "cut"}


def test_input_and_output_that_cannot_be_used_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    empty, blocked = tmp_path / "empty.jsonl", tmp_path / "file"
    empty.touch()
    blocked.write_text("{}")
    with pytest.raises(UserError, match=r"none\.jsonl is no file: give one of JSON lines"):
        main(EnsembleConfig(str(folder), tmp_path / "none.jsonl", tmp_path / "out.jsonl"))
    own = tmp_path / "own.jsonl"
    own.write_text("[]\n")
    with pytest.raises(UserError, match="is the input itself"):
        main(EnsembleConfig(str(folder), own, own))
    with pytest.raises(UserError, match="is it JSON lines"):
        main(EnsembleConfig(str(folder), own, tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="is empty"):
        main(EnsembleConfig(str(folder), empty, tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="choose another --output"):
        main(EnsembleConfig(str(folder), blocked, blocked / "out.jsonl"))


def test_a_folder_as_output_is_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("{}\n")
    target.mkdir()
    with pytest.raises(UserError, match="is a folder: name a file"):
        main(EnsembleConfig(str(folder), source, target))
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"output": "blocked/out.jsonl"}, "choose another --output"),
        ({"output": "folder"}, "is a folder"),
        ({"model": "absent"}, "is no URG model"),
        ({"device": "gpu"}, "choose cpu"),
        ({"dtype": "fp16"}, "dtype"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_before_anything_heavy_is_loaded(
    folder: Path, tmp_path: Path, options: dict[str, str], sentence: str
) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "blocked").write_text("a file")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    values = {"model": str(folder), "input": "in.jsonl", "output": "out.jsonl", **options}
    script = (
        "import sys; sys.argv[1:] = %r\n"
        "from urg.config import EnsembleConfig\nfrom urg.ensemble import main, run_command\n"
        "try: run_command(main, EnsembleConfig)\n"
        "finally: print([m for m in ('torch', 'transformers') if m in sys.modules])"
    ) % [f"--{key}={value}" for key, value in values.items()]
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert ended.stdout == "[]\n"
    assert sorted(tmp_path.rglob("*")) == before


class Killed(BaseException):
    """Not to be caught."""


def kill_in_call(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let the command end within a call for some rows; returns a list that grows by their number with each call."""
    begun: list[int] = []
    fuse = Ensemble.rank_and_fuse_batch

    def count(self: Ensemble, queries: list[Query], *options: Any) -> list[Fused]:
        begun.append(len(queries))
        if len(begun) == number:
            raise Killed
        return fuse(self, queries, *options)

    monkeypatch.setattr(Ensemble, "rank_and_fuse_batch", count)
    return begun


def test_a_killed_command_goes_on_and_its_output_is_that_of_an_undisturbed_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source, calm, hit = (tmp_path / name for name in ("in.jsonl", "calm.jsonl", "hit.jsonl"))
    rows = [{"id": i, "instruction": f"Where is {i}?", "candidates": TEXTS[i % 3 :]} for i in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{")
    main(EnsembleConfig(str(folder), source, calm, batch_size=1, num_beams=1))
    begun = kill_in_call(monkeypatch, 3)
    again = EnsembleConfig(str(folder), source, hit, batch_size=1, num_beams=1)
    assert lines_at_once(again) == 4
    with pytest.raises(Killed):
        main(again)
    part = tmp_path / "hit.jsonl.part"
    assert part.read_bytes().count(b"\n") == 8
    part.write_bytes(part.read_bytes()[:-5])  # killed in mid-line
    capsys.readouterr()
    main(again)
    assert begun == [4, 4, 1, 4, 1]
    assert hit.read_bytes() == calm.read_bytes()
    said = capsys.readouterr().err
    assert "goes on after 4 rows" in said
    assert "10 rows: 9 answered, 1 with an error (bad_json 1)" in said
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "calm.jsonl", "hit.jsonl"}


@pytest.mark.parametrize("other", ["options", "input", "model", "note"])
def test_lines_made_of_something_else_are_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, other: str
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"instruction": "Where?", "candidates": TEXTS}) + "\n" + "{\n" * 3)
    config = EnsembleConfig(str(model), source, output, batch_size=1, num_beams=1)
    begun = kill_in_call(monkeypatch, 0)
    with monkeypatch.context() as patch:
        patch.setattr("urg.partial_output.Path.replace", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main(config)
    if other == "options":
        config = dataclasses.replace(config, num_beams=2)
    elif other == "input":
        source.write_text(source.read_text() + "{\n")
    elif other == "model":
        os.utime(model / "model.safetensors", (1, 1))
    else:
        (tmp_path / "out.jsonl.part.json").write_text("[")
    main(config)
    assert "starting over" in capsys.readouterr().err
    assert len(begun) == 2
    assert len(output.read_text().splitlines()) == len(source.read_text().splitlines())
