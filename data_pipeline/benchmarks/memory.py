"""Running a command while watching the memory of everything that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from data_pipeline.errors import UserError

_EVERY_S = 0.25


@dataclass(frozen=True)
class Watched:
    """A command that has run."""

    seconds: float
    peak_bytes: int
    """Largest sum of the resident memory of all its processes. Shared pages count once for each process."""
    output: str


def run_watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end. Raises UserError with its last lines where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    peaks = [0]
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {output[-2000:]}")
    return Watched(seconds, peaks[0], output)


def _watch(pid: int, peaks: list[int], ended: threading.Event) -> None:
    while not ended.wait(_EVERY_S):
        peaks[0] = max(peaks[0], resident_bytes(pid))


def resident_bytes(pid: int) -> int:
    """Sum of the resident memory of a process and all that descend from it."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total
