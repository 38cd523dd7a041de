"""What safety costs a training, on the sample's model: weak scaling, checkpoints and tracking, an outage of MLflow, and
how long a killed worker is missed. Every figure is that of `python -m urg.train`, by when its log has its steps.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from urg.benchmarks.clock import Timing
from urg.benchmarks.urg_train import STEP, command, options, prepare_sample, processes

ROWS = 16
"""Rows of a step and worker."""
WARM = 10
"""First steps of a run that do not count; and so often a run logs, as is the default, where not every step is asked
for."""
SHORT = 40
"""Steps of the runs that something happens to."""
Moments = list[tuple[int, float]]
"""(step, when its line came), repeated steps again."""


def measure_faults(work: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds a step with one worker and two, with and without checkpoints and tracking (runs in turn, `repeats` of
    each), with MLflow and while it is away, and after a SIGKILL. work: an empty folder.

    Beside them two runs of one worker go at the same time, which share nothing but the machine: what its cores are
    slowed down by one another (memory, clock, Ray's own processes) is not for the training to answer.
    """
    prepare_sample(work / "data", 2 * ROWS * steps)
    kinds: dict[str, dict[str, Any]] = {
        "bare": {},
        "two_runs": {},
        "two_workers": {"engine.workers": 2},
        "kept": {
            "tracking.uri": f"sqlite:///{work / 'mlflow.db'}",
            "checkpoint_every": steps // 2,  # one before the last step
        },
    }
    seconds: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for repeat in range(repeats):
        for kind, own in kinds.items():
            count = 2 if kind == "two_runs" else 1
            runs = [_Run(work, f"{kind}-{repeat}-{number}", steps, own) for number in range(count)]
            with ThreadPoolExecutor(count) as pool:
                seconds[kind] += map(_intervals, pool.map(_train, runs))
    medians = {kind: statistics.median(value for run in runs for value in run) for kind, runs in seconds.items()}
    return {
        "steps": steps,
        "seconds": medians,
        "spread": {kind: _spread(runs) for kind, runs in seconds.items()},
        "weak_scaling": medians["bare"] / medians["two_workers"],
        "scaling_of_machine": medians["bare"] / medians["two_runs"],
        **_cost_of_keeping(seconds, steps),
        "outage": _outage(work, min(steps, SHORT)),
        "recovery": _recovery(work, min(steps, SHORT)),
    }


def _spread(runs: list[list[float]]) -> float:
    """Of the runs' own medians."""
    return Timing(tuple(map(statistics.median, runs))).spread


def _cost_of_keeping(seconds: dict[str, list[list[float]]], steps: int) -> dict[str, float]:
    """Whole runs beside one another: medians of their means. What comes after a checkpoint has it in its interval."""
    means = {kind: statistics.median(map(statistics.fmean, runs)) for kind, runs in seconds.items()}
    after = [run[steps // 2 // WARM - 1] for run in seconds["kept"]]
    usual = statistics.median(value for run in seconds["kept"] for value in run)
    return {
        "overhead": means["kept"] / means["bare"] - 1,
        "checkpoint_seconds": WARM * (statistics.median(after) - usual),
    }


class _Run:
    """A run's command and its log."""

    def __init__(self, work: Path, name: str, steps: int, own: dict[str, Any]) -> None:
        changed = {
            "name": name,
            "storage": work / "runs",
            "data.shards": work / "data",
            "steps": steps,
            "batch.micro": ROWS,
            "eval.every": 10 * steps,
            "eval.rows": 4,
            "engine.workers": 1,
            "tracking.uri": "off",
            "tracking.log_every": WARM,
        } | own
        self.command = command(["urg.train", *options(changed)])
        self.log, self.steps = work / "runs" / name / "train.log", steps


def _train(run: _Run, at: dict[int, Callable[[subprocess.Popen[bytes]], None]] | None = None) -> Moments:
    """Run it to its end and note when each step's line came. at: what to do when a step is there, once."""
    due, moments, seen = dict(at or {}), [], 0
    with subprocess.Popen(run.command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            text = run.log.read_text() if run.log.exists() else ""
            now, found = time.perf_counter(), STEP.findall(text)
            moments += [(int(step), now) for step in found[seen:]]
            seen = len(found)
            if moments and moments[-1][0] in due:
                due.pop(moments[-1][0])(process)
            time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"urg.train ended with code {process.returncode}.")
    return moments


def _intervals(moments: Moments) -> list[float]:
    """Seconds a step between two lines, the first ones left out."""
    moments = [moment for moment in moments if moment[0] >= WARM]
    return [(t - t0) / (step - step0) for (step0, t0), (step, t) in itertools.pairwise(moments)]


def _outage(work: Path, steps: int) -> dict[str, float]:
    """One run whose MLflow server is killed in its middle: the median step before and after."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server += ["--backend-store-uri", f"sqlite:///{work / 'server.db'}", "--artifacts-destination", str(work / "files")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (work / "server.log").open("w") as log:
        process = subprocess.Popen(
            command(server), stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        run = _Run(work, "outage", steps, {"tracking.uri": f"http://127.0.0.1:{port}", "tracking.log_every": 1})
        moments = _train(run, {steps // 2: lambda _: os.killpg(process.pid, signal.SIGKILL)})
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds = _intervals(moments)
    before, after = seconds[: steps // 2 - WARM], seconds[steps // 2 - WARM :]
    return {"before_seconds": statistics.median(before), "after_seconds": statistics.median(after)}


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError("the MLflow server did not start.")


def _recovery(work: Path, steps: int) -> dict[str, float]:
    """Seconds from SIGKILL of one of two workers to what can be seen of the recovery."""
    run = _Run(work, "recovery", steps, {"engine.workers": 2, "checkpoint_every": 5, "tracking.log_every": 1})
    seen: dict[str, float] = {}

    def kill(driver: subprocess.Popen[bytes]) -> None:
        old, killed = processes(driver.pid)[0], time.perf_counter()
        stages: dict[str, Callable[[str], bool]] = {
            "old_workers_ended": lambda log: not any(worker.is_running() for worker in old),
            "new_worker_started": lambda log: bool(set(processes(driver.pid)[0]) - set(old)),
            "checkpoint_loaded": lambda log: "resuming from" in log,
            "next_step": lambda log: bool(STEP.search(log.partition("resuming from")[2])),
        }
        old[-1].kill()
        while len(seen) < len(stages):
            if driver.poll() is not None:
                raise RuntimeError("urg.train ended instead of recovering.")
            log = run.log.read_text()
            new = [name for name, holds in stages.items() if name not in seen and holds(log)]
            seen.update(dict.fromkeys(new, time.perf_counter() - killed))
            time.sleep(0.01)

    _train(run, {12: kill})
    return seen
