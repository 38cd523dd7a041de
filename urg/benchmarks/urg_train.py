"""`python -m urg.train` as the benchmarks run it: in a process of its own, timed by when its log has its steps."""

from __future__ import annotations

import re
import sys

import psutil

STEP = re.compile(r"^step (\d+)/\d+  loss", re.MULTILINE)
"""A step's line in the log."""


def command(arguments: list[str]) -> list[str]:
    """`python -m` with these arguments, by the interpreter that runs this."""
    return [sys.executable, "-m", *arguments]


def processes(driver: int) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """(Ray Train's workers, the driver and all others that it has started, Ray's own among them)."""
    workers: list[psutil.Process] = []
    others: list[psutil.Process] = []
    for process in (psutil.Process(driver), *psutil.Process(driver).children(recursive=True)):
        try:
            (workers if "TrainWorker" in " ".join(process.cmdline()) else others).append(process)
        except psutil.Error:
            continue
    return workers, others
