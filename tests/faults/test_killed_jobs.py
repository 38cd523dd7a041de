"""Evaluation and labelling are killed and started again by the same command: the result is an undisturbed one's.

The same for preparing shards, collecting and sweeps: tests/data_pipeline and tests/tuning.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from tests.faults.training import ROOT, Run

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]


def _start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )


def _finish(command: list[str]) -> str:
    process = _start(command)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_an_evaluation_is_killed_after_each_of_its_first_systems(calm: Run, shards: Path, tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        options = ["--num_beams", "1", "--max_new_tokens", "4", "--statistics.resamples", "0", "--track", "false"]
        named = ["--model", str(calm.folder / "model"), "--shards", str(shards), "--output", str(output)]
        return ["urg.evaluate", *named, *options]

    undisturbed, hurt = tmp_path / "undisturbed", tmp_path / "hurt"
    _finish(command(undisturbed))
    answered = len(list((undisturbed / "answers").iterdir()))
    assert answered >= 3
    for done in range(1, 4):
        process = _start(command(hurt))
        while not (hurt / "answers").is_dir() or len(list((hurt / "answers").glob("*.parquet"))) < done:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.01)
        _kill(process)
    assert "kept from an earlier run" in _finish(command(hurt))
    for name in ("metrics.json", "predictions.parquet", "tables.md"):
        written = (hurt / name).read_bytes().replace(str(hurt).encode(), str(undisturbed).encode())
        assert written == (undisturbed / name).read_bytes(), name


def test_labelling_is_killed_at_random_moments(tmp_path: Path) -> None:
    from data_pipeline.sample import generate_rows

    random, rows = Random(0), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in generate_rows("train", 60)))

    def command(output: Path) -> list[str]:
        options = ["--metrics", "rouge,bleu", "--overwrite", "true", "--rows_per_shard", "5"]
        return ["data_pipeline.label", "--input", str(rows), "--output", str(output), *options]

    started = time.monotonic()
    _finish(command(tmp_path / "undisturbed"))
    seconds, killed = time.monotonic() - started, 0
    while killed < 3:
        started, process = time.monotonic(), _start(command(tmp_path / "hurt"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.3, 0.9) * seconds)
            seconds = time.monotonic() - started  # it was done before: it finds its files in memory, or less to do
        _kill(process)
        killed += process.returncode == -signal.SIGKILL
    _finish(command(tmp_path / "hurt"))
    assert _content(tmp_path / "hurt") == _content(tmp_path / "undisturbed")


def _content(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which names the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
