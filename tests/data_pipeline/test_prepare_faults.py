"""`prepare` is killed at any moment, in whole or in part, and nothing of that can be seen in the shards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.shards import ShardSet

pytestmark = pytest.mark.slow

Start = Callable[[Path], subprocess.Popen[str]]


@pytest.fixture
def start(make_rows: Callable[..., Any], write_rows: Callable[..., Path], tokenizer_folder: Path) -> Start:
    """start(root): `prepare` of 400 rows, one of them bad, in small shards, as a process of its own."""
    path = write_rows("rows.jsonl", make_rows(400))
    with path.open("a", encoding="utf-8") as file:
        file.write("not JSON\n")

    def begin(root: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "data_pipeline.prepare", "--input", str(path), "--output", str(root)]
        command += ["--tokenizer", str(tokenizer_folder), "--rows_per_shard", "16"]
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)

    return begin


def _finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output[-2000:]


def _kill_all(process: subprocess.Popen[str]) -> str | None:
    """SIGKILL the process and all that it has started; where it had ended before, what it has printed."""
    running = process.poll() is None
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if running else []
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    output, _ = process.communicate()
    return None if running else output


def _content(root: Path) -> dict[str, bytes]:
    """Every file of the newest set but the reader's cache; of the manifest its counts, for it names the root."""
    folder = ShardSet.open(root).folder
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    manifest = json.loads(content.pop("manifest.json"))
    totals = manifest["totals"]
    assert totals["input"] == 401 == totals["kept"] + sum(totals["rejected"].values())
    return content | {"splits": json.dumps(manifest["splits"]).encode(), "key": manifest["key"].encode()}


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.faults), pytest.param(20, marks=pytest.mark.exhaustive)]
)
@pytest.mark.timeout(900)
def test_killed_at_random_moments_the_shards_are_those_of_an_undisturbed_run(
    kills: int, start: Start, tmp_path: Path
) -> None:
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    started = time.monotonic()
    _finish(start(calm))
    whole_run = time.monotonic() - started
    rng = random.Random(kills)
    while kills:
        process = start(hit)
        time.sleep(rng.uniform(0.0, whole_run))
        output = _kill_all(process)
        if output is None:
            kills -= 1
        else:  # it was faster than the first: again, from where the kills before this one have left it
            assert process.returncode == 0, output[-2000:]
            for manifest in hit.glob("*/manifest.json"):
                manifest.unlink()
    _finish(start(hit))
    assert _content(hit) == _content(calm)
    assert not list(hit.glob(".staging*"))


@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_killed_worker_is_replaced_within_the_run(start: Start, tmp_path: Path) -> None:
    """SIGKILL, as the kernel's out-of-memory killer sends it, of the first workers that take part."""
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    _finish(start(calm))
    process = start(hit)
    killed: set[int] = set()
    while len(killed) < 2 and process.poll() is None:
        for worker in _busy_workers(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        time.sleep(0.02)
    assert len(killed) >= 2
    _finish(process)
    assert _content(hit) == _content(calm)


def _busy_workers(pid: int) -> list[int]:
    """Ray's workers that run a task of a plan, at most one."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(child.cmdline()).startswith("ray::Map"):
                    found.append(child.pid)
    return found[:1]
