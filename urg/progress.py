"""What a person sees of a run: rank 0 writes lines to `<run>/train.log`, the driver shows them as they come.

A file, and not the workers' output, so that the log stays with the run and is free of what libraries print in every
worker.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path


class RunLog:
    """Appends lines to a run's log; every line is on disk when the call returns, or lost where the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def line(self, text: str) -> None:
        """Write one line."""
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def follow(path: Path, finished: threading.Event, interval: float = 0.5) -> None:
    """Print what is appended to `path` from now on, until `finished` is set; on a terminal, steps replace one
    another."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        last_look = finished.wait(interval)
        if path.exists():
            with path.open(encoding="utf-8") as file:
                file.seek(position)
                for line in iter(file.readline, ""):
                    _show(line.rstrip("\n"))
                position = file.tell()
        if last_look:
            if sys.stdout.isatty():
                print()
            return


def _show(line: str) -> None:
    """A plain line; on a terminal a step's line is overwritten by the next one."""
    if not sys.stdout.isatty():
        print(line, flush=True)
    elif line.startswith("step ") and "dev:" not in line:
        print(f"\r\033[K{line}", end="", flush=True)
    else:
        print(f"\r\033[K{line}", flush=True)
