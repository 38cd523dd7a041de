"""What Ray, DeepSpeed, MLflow and checkpoints cost a step: `urg.train` with one worker beside a bare PyTorch loop.

Both train the sample's model in fp32 on the same batches of the generated sample, in the same order, with AdamW and
clipping, on a GPU where there is one. The clock of `urg.train` is the wall's, from its first logged step to its last,
with all that lies between: data, logging, tracking, and a checkpoint.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from urg.benchmarks.clock import synchronize

ROWS = 16
"""Rows of a step."""
_STEP = re.compile(r"^step (\d+)/\d+  loss")


def measure_stack(work: Path, steps: int, threads: int, device: torch.device) -> dict[str, Any]:
    """Seconds a step of both, over the steps from the first logged one to the last. work: an empty folder.

    The bare loop runs before and after, so that a machine that grows busier shows.
    """
    prepare = ["data_pipeline.prepare", "--config", "sample", "--output", str(work / "data")]
    sizes = ["--sample.train", str(ROWS * steps), "--sample.dev", "8", "--sample.test", "8"]
    subprocess.run(_command([*prepare, *sizes]), check=True, stdout=subprocess.DEVNULL)
    every = max(1, steps // 8)
    arguments = _arguments(work, steps, every, threads, device)
    before = _bare(arguments, steps, every, device)
    stack = _train(arguments, steps, every)
    after = _bare(arguments, steps, every, device)
    mean = (before + after) / 2
    bare = {
        "bare_seconds": mean,
        "bare_seconds_before_and_after": [before, after],
        "spread": abs(after - before) / mean,
    }
    return {"steps": steps - every, "stack_seconds": stack, **bare}


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _arguments(work: Path, steps: int, every: int, threads: int, device: torch.device) -> list[str]:
    """What both train, as options of `urg.train`."""
    changed = {
        "storage": work / "runs",
        "data.shards": work / "data",
        "steps": steps,
        "engine.workers": 1,
        "engine.use_gpu": str(device.type == "cuda").lower(),
        "engine.cpus_per_worker": threads,
        "engine.dtype": "fp32",
        "batch.micro": ROWS,
        "eval.every": 10 * steps,
        "eval.rows": 8,
        "checkpoint_every": max(1, steps // 2),
        "tracking.log_every": every,
    }
    return ["--config", "sample", *(part for key, value in changed.items() for part in (f"--{key}", str(value)))]


def _train(arguments: list[str], steps: int, every: int) -> float:
    """Seconds a step of `urg.train`, by when its lines come."""
    moments: dict[int, float] = {}
    process = subprocess.Popen(_command(["urg.train", *arguments]), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := _STEP.match(line):
            moments[int(found[1])] = time.perf_counter()
    if process.wait():
        raise RuntimeError(f"urg.train ended with code {process.returncode}.")
    return (moments[steps] - moments[every]) / (steps - every)


def _bare(arguments: list[str], steps: int, every: int, device: torch.device) -> float:
    """Seconds a step of the loop that one would write without all of it: the same model, batches and losses."""
    from data_pipeline.cli import parse_config
    from urg.batching import Cursor, GlobalBatches
    from urg.config import PRESETS, TrainConfig
    from urg.objective import weighted_sum
    from urg.training.plan import Plan, open_data, training_and_dev
    from urg.training.task import Share, build_task

    config = parse_config(TrainConfig, presets=PRESETS, argv=arguments)
    shards = open_data(config)
    task, (split, _) = build_task(config, shards), training_and_dev(config, shards)
    batches, plan, cursor = GlobalBatches(len(split), ROWS, config.seed), Plan.of(config, len(split)), Cursor()
    task.module.to(device)
    optimizer = torch.optim.AdamW(task.module.parameters(), weight_decay=0.0)
    started = 0.0
    for step in range(1, steps + 1):
        rows, cursor = batches.at(cursor)
        batch = task.batch(Share([split[int(row)] for row in rows], rows, step, 0), device)
        optimizer.param_groups[0]["lr"] = plan.lr(step, config.optim)
        weighted_sum(task.terms(task.module, batch, task.counts(split, rows)), task.weights).backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == every:
            synchronize(device)
            started = time.perf_counter()
    synchronize(device)
    return (time.perf_counter() - started) / (steps - every)
