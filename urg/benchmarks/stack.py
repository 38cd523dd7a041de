"""What Ray, DeepSpeed, MLflow and checkpoints cost a step: `urg.train` with one worker beside a bare PyTorch loop.

Both train the sample's model in fp32 on the same batches of the generated sample, in the same order, with AdamW and
clipping, on a GPU where there is one. The clock of `urg.train` is the wall's, from its first logged step to its last,
with all that lies between: data, logging, tracking, and a checkpoint. Beside it the processor's time, of the worker and
of all other processes, most of them Ray's: where these have no core of their own, the worker waits for them.
"""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from urg.benchmarks.clock import Timing, synchronize
from urg.benchmarks.urg_train import STEP, command, options, prepare_sample, processes

ROWS = 16
"""Rows of a step."""


def measure_stack(work: Path, steps: int, repeats: int, threads: int, device: torch.device) -> dict[str, Any]:
    """Seconds a step of both, over the steps from the first logged one to the last. work: an empty folder.

    The two take turns, `repeats` times, with the bare loop once more at the end: medians, and the spread of each.
    """
    prepare_sample(work / "data", ROWS * steps)
    every = max(1, steps // 8)
    found: dict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        arguments = _arguments(work, f"stack-{repeat}", steps, every, threads, device)
        for name, seconds in _bare(arguments, steps, every, device).items():
            found[name].append(seconds)
        if repeat < repeats:
            for name, seconds in _train(arguments, steps, every).items():
                found[name].append(seconds)
    medians = {name: Timing(tuple(values)).median for name, values in found.items()}
    spread = {name: Timing(tuple(found[name])).spread for name in ("stack_seconds", "bare_seconds")}
    return {"steps": steps - every, **medians, "spread": spread}


def _arguments(work: Path, name: str, steps: int, every: int, threads: int, device: torch.device) -> list[str]:
    """What both train, as options of `urg.train`."""
    changed = {
        "name": name,
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
    return options(changed)


def _train(arguments: list[str], steps: int, every: int) -> dict[str, float]:
    """Seconds a step of `urg.train`, by when its lines come, and the processor's, of its worker and of the others."""
    seen: dict[int, tuple[float, list[dict[int, float]]]] = {}
    process = subprocess.Popen(command(["urg.train", *arguments]), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if (found := STEP.match(line)) and int(found[1]) in (every, steps):
            seen[int(found[1])] = time.perf_counter(), [_processor_seconds(own) for own in processes(process.pid)]
    if process.wait():
        raise RuntimeError(f"urg.train ended with code {process.returncode}.")
    (start, before), (end, after) = seen[every], seen[steps]
    worker, others = (
        sum(seconds - old.get(pid, 0.0) for pid, seconds in new.items()) for old, new in zip(before, after, strict=True)
    )
    spent = {"stack_seconds": end - start, "worker_processor_seconds": worker, "other_processor_seconds": others}
    return {name: seconds / (steps - every) for name, seconds in spent.items()}


def _processor_seconds(processes: list[psutil.Process]) -> dict[int, float]:
    """What each of these has used so far, those that have ended left out."""
    used = {}
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used[process.pid] = times.user + times.system
    return used


def _bare(arguments: list[str], steps: int, every: int, device: torch.device) -> dict[str, float]:
    """Seconds a step, and the processor's, of the loop that one would write without all of it: the same model, batches
    and losses."""
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
    started, used = 0.0, 0.0
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
            started, used = time.perf_counter(), time.process_time()
    synchronize(device)
    spent = {"bare_seconds": time.perf_counter() - started, "bare_processor_seconds": time.process_time() - used}
    return {name: seconds / (steps - every) for name, seconds in spent.items()}
