"""A disk that is really full, at whatever moment: one sentence, and what stood there before stands as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.collect import collect
from data_pipeline.collection.config import CollectConfig
from data_pipeline.config import PrepareConfig, TrainTokenizerConfig
from data_pipeline.errors import UserError
from data_pipeline.label import label
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.prepare import prepare
from data_pipeline.shards import ShardSet
from tests.data_pipeline.chat_server import chat_server
from tests.small_disk import fill, mounted_disk

pytestmark = pytest.mark.faults

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this user may mount one."""
    with mounted_disk(tmp_path / "disk", "2m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a file system")
        yield tmp_path / "disk"


def outcome(run: Callable[[], object]) -> str:
    """ "done", or what it said."""
    try:
        run()
    except UserError as error:
        return str(error)
    return "done"


def require_sentences(outcomes: Sequence[str], at_least: int) -> None:
    """So many failures, each a sentence that names the full disk, and then success."""
    assert outcomes[-1] == "done"
    assert len(outcomes) > at_least
    assert [said for said in outcomes[:-1] if "No space left on device" not in said or "\n" in said] == []


def test_prepare_keeps_the_set_before(
    without_ray: None, small_disk: Path, make_rows: Any, write_rows: Any, tokenizer_folder: Path
):
    root = small_disk / "out"
    first = prepare(PrepareConfig(str(write_rows("a.jsonl", make_rows(20))), str(root), str(tokenizer_folder)))
    larger = PrepareConfig(str(write_rows("b.jsonl", [*make_rows(400), b"{"])), str(root), str(tokenizer_folder))
    outcomes = []
    for free in range(0, MIB, 12 << 10):
        fill(small_disk, free)
        outcomes.append(outcome(lambda: prepare(larger)))
        if outcomes[-1] == "done":
            break
        assert ShardSet.open(root).folder == first
        assert sorted(path.name for path in root.iterdir()) == sorted([".lock", "CURRENT", first.name])
    require_sentences(outcomes, at_least=5)
    assert ShardSet.open(root).manifest["totals"]["kept"] == 400


def test_label_keeps_what_is_done(without_ray: None, small_disk: Path, make_rows: Any, write_rows: Any):
    output = small_disk / "labelled"
    config = LabelConfig(str(write_rows("a.jsonl", make_rows(200))), str(output), "bleu", rows_per_shard=50)
    outcomes = []
    for free in range(0, MIB, 24 << 10):
        fill(small_disk, free)
        outcomes.append(outcome(lambda: label(config)))
        if outcomes[-1] == "done":
            break
        assert not output.exists()
    require_sentences(outcomes, at_least=3)
    assert sum(len(path.read_bytes().splitlines()) for path in output.glob("*.jsonl")) == 200


def test_collect_goes_on_when_there_is_room(small_disk: Path, write_rows: Any):
    prompts = [{"id": str(i), "instruction": f"q{i}"} for i in range(40)]
    path, output = write_rows("prompts.jsonl", [*prompts, b"{" + b"x" * 100_000]), small_disk / "collected"
    outcomes: list[str] = []
    with chat_server() as server:
        models = [{"name": "m", "base_url": server.url, "model": "m"}]
        for free in range(0, MIB, 4 << 10):
            fill(small_disk, free)
            outcomes.append(outcome(lambda: collect(CollectConfig(models, str(path), str(output)))))
            if outcomes[-1] == "done":
                break
            assert not (output / "manifest.json").exists()
    require_sentences(outcomes, at_least=5)
    assert len((output / "rows.jsonl").read_bytes().splitlines()) == 40


def test_statistics_and_tokenizers_say_so_too(small_disk: Path, make_rows: Any, write_rows: Any):
    from data_pipeline import stats, train_tokenizer

    rows, full = str(write_rows("a.jsonl", make_rows(20))), str(small_disk / "out")
    fill(small_disk, 8 << 10)
    assert "No space left on device" in outcome(lambda: stats.main(stats.StatsConfig(rows, full)))
    assert "No space left on device" in outcome(lambda: train_tokenizer.main(TrainTokenizerConfig(rows, full, 300)))
