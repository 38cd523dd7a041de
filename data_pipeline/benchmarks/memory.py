"""Running a command while watching memory and processor time of everything that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from data_pipeline.errors import UserError

_EVERY_S = 0.25


@dataclass(frozen=True)
class Watched:
    """A command that has run."""

    seconds: float
    cpu_seconds: float
    """Processor time of all its processes, up to a quarter of a second before each one's end: what it costs, also on a
    machine that others use."""
    peak_bytes: int
    """Largest sum of the resident memory of all its processes. Shared pages count once for each process."""
    output: str


def run_watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end. Raises UserError with its last lines where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    seen = _Seen()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, seen, ended), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {output[-2000:]}")
    return Watched(seconds, sum(seen.cpu_seconds.values()), seen.peak_bytes, output)


@dataclass
class _Seen:
    """What watching has seen. cpu_seconds: of each process, by its id and start."""

    peak_bytes: int = 0
    cpu_seconds: dict[tuple[int, float], float] = field(default_factory=dict)


def _watch(pid: int, seen: _Seen, ended: threading.Event) -> None:
    while not ended.wait(_EVERY_S):
        _look(pid, seen)


def _look(pid: int, seen: _Seen) -> None:
    """Add the present resident memory and processor time of a process and all that descend from it."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return
    for process in family:
        try:
            total += process.memory_info().rss
            times = process.cpu_times()
            seen.cpu_seconds[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:
            continue
    seen.peak_bytes = max(seen.peak_bytes, total)
