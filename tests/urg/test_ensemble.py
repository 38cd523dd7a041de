"""The Python API and the command: rank and fuse, in order, with nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.train_tokenizer import save_tokenizer, train_tokenizer
from urg.config import EnsembleConfig
from urg.ensemble import Ensemble, Query, main
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


def test_at_most_k_candidates_are_used(ensemble: Ensemble) -> None:
    assert len(ensemble.rank_and_fuse("Where?", TEXTS).used) == 2
    assert len(ensemble.rank_and_fuse("Where?", TEXTS, k=4).used) == 4
    assert len(ensemble.rank_and_fuse("Where?", TEXTS[:1]).used) == 1


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


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(folder: Path, device: str) -> None:
    with pytest.raises(UserError, match="choose cpu"):
        Ensemble.from_pretrained(folder, device=device)


def test_rank_only_writes_no_text(run: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = run([json.dumps({"instruction": "Where?", "candidates": TEXTS}).encode()], rank_only=True)
    assert row.keys() == {"id", "scores", "order"}


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
