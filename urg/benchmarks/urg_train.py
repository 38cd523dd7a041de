"""`python -m urg.train` as the benchmarks run it: in a process of its own, timed by when its log has its steps."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

STEP = re.compile(r"^step (\d+)/\d+  loss", re.MULTILINE)
"""A step's line in the log."""


def command(arguments: list[str]) -> list[str]:
    """`python -m` with these arguments, by the interpreter that runs this."""
    return [sys.executable, "-m", *arguments]


def options(settings: Mapping[str, Any]) -> list[str]:
    """`--key value` of each setting of the preset `sample` that is another here."""
    return ["--config", "sample", *(part for key, value in settings.items() for part in (f"--{key}", str(value)))]


def prepare_sample(folder: Path, rows: int) -> None:
    """Prepare the generated sample in `folder`: so many rows to train on, and eight of each other split."""
    sizes = {"sample.train": rows, "sample.dev": 8, "sample.test": 8}
    arguments = ["data_pipeline.prepare", *options({"output": folder, **sizes})]
    subprocess.run(command(arguments), check=True, stdout=subprocess.DEVNULL)


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
