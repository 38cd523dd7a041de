"""The rows that the benchmark prepares are of the shape and lengths it says, and its watching sees what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.benchmark import BenchmarkConfig, main
from data_pipeline.benchmarks.corpus import LONGEST, corpus_rows, lengths
from data_pipeline.benchmarks.memory import run_watched
from data_pipeline.errors import UserError
from data_pipeline.schema import parse_row


@pytest.mark.parametrize("mean", [20.0, 66.0])
def test_lengths_have_the_mean_that_is_asked_for_after_the_cut(mean: float) -> None:
    drawn = lengths(np.random.default_rng(0), 100_000, mean)
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.min() >= 1
    assert drawn.max() == LONGEST


def test_rows_are_valid_seeded_and_of_their_length_in_tokens() -> None:
    rows = list(corpus_rows(200, seed=3, tokens_per_word=2.0))
    assert rows == list(corpus_rows(200, seed=3, tokens_per_word=2.0))
    examples = [parse_row(row) for row in rows]
    assert {len(example.candidates) for example in examples} == {12}
    words = [len(candidate.text.split()) for example in examples for candidate in example.candidates]
    assert 2 * np.mean(words) == pytest.approx(66, rel=0.05)


def test_another_seed_gives_other_rows_of_the_same_language() -> None:
    """Else a tokenizer that was trained on other rows would need more tokens than the lengths are said to be."""
    texts = [[each["text"] for row in corpus_rows(300, seed) for each in row["candidates"]] for seed in (0, 1)]
    assert texts[0] != texts[1]
    counts = [Counter(word for text in each for word in text.split()) for each in texts]
    common = [{word for word, count in own.items() if count > 1} for own in counts]
    assert len(common[0] & counts[1].keys()) > 0.7 * len(common[0])


def test_some_words_come_only_once() -> None:
    words = Counter(word for row in corpus_rows(300, 0) for each in row["candidates"] for word in each["text"].split())
    once = sum(len(word) == 11 and count == 1 for word, count in words.items())
    assert 0.015 < once / words.total() < 0.03


def test_memory_and_time_of_children_are_seen_and_a_failure_is_told() -> None:
    child = "x = bytearray(300 << 20); import time\nwhile time.process_time() < 2: pass"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    run = run_watched([sys.executable, "-c", command])
    assert run.output.strip() == "done"
    assert 300 << 20 < run.peak_bytes < 500 << 20
    assert 1 < run.cpu_seconds < 4
    with pytest.raises(UserError, match="no such thing"):
        run_watched([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_sizes_are_checked() -> None:
    with pytest.raises(UserError, match="1 or more"):
        BenchmarkConfig(rows=0)


@pytest.mark.slow
@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_every_figure_is_there(tmp_path: Path) -> None:
    main(BenchmarkConfig(output=str(tmp_path), rows=60, sizes=(30,), peer_rows=30, repeats=1))
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert [run["rows"] for run in result["growth"]] == [30, 60]
    assert result["peak_gib_beyond_idle"] < result["growth"][-1]["peak_gib"]
    assert result["ratio_to_datasets_map"] > 0
    assert not (tmp_path / "work").exists()


def test_help_is_quick_and_plain() -> None:
    done = subprocess.run([sys.executable, "-m", "data_pipeline.benchmark", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--peer_rows" in done.stdout
