"""What Ray Tune runs: one training run of the sweep, its TorchTrainer within a trial that itself takes no CPU.

The trial's function watches the evaluations that the run leaves in its folder and reports each to Tune. Its outcome is
a file, so that it stands whatever becomes of the process, of Tune, or of MLflow.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from tuning.blueprint import Blueprint, Unit
from tuning.ledger import Outcome, read_outcome
from urg.training import checkpoints
from urg.training.evaluations import Evaluation, read_evaluations
from urg.training.notices import UNTIL_STOPPED, is_gone
from urg.training.state import Stopped

POLL = 0.3
"""Seconds between two looks for evaluations."""
PATIENCE = 120.0
"""Seconds that a trial waits for an earlier process of its run to be gone."""
SESSIONS = "sessions.txt"
"""File in the run's folder with the time at which each of its sessions began."""
ENDED = "ended"
"""Key of a run's last result, its outcome as JSON; null where it was stopped and stays open."""
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|can't allocate memory|MemoryError|\boom\b", re.IGNORECASE)
_KILLED_BY_RAY = re.compile(r"\d+ worker\(s\) were killed due to the node running low on memory")
_GUESSES = re.compile(r"Some common causes include: .*", re.DOTALL)
"""With which Ray ends when a process is gone: the system's OOM killer is always one, whatever it was."""


def run_unit(settings: dict[str, Any], blueprint: Blueprint, until: Path | None = None) -> None:
    """Tune's function: train one unit; report `step`, `objective` and every dev metric at each evaluation.

    settings: number, fold, point, tags for MLflow, and shards where they are not the base's. until: a file without
    which the sweep is stopped, and nothing begins to train. Raises RuntimeError with the outcome's reason where the run
    failed, so that Tune counts it as failed too.
    """
    unit = Unit(settings["number"], settings["fold"])
    run = blueprint.trials_folder / unit.name
    outcome = read_outcome(run)
    if outcome is None:
        _wait_for_nodes()
        outcome = _run(settings, blueprint, unit, until)
        if outcome is not None:
            outcome.write(run)
    _hand_over(outcome)
    if outcome is not None and outcome.state == "failed":
        raise RuntimeError(outcome.reason)


def _hand_over(outcome: Outcome | None) -> None:
    """Tell the scheduler how the run has ended: the file may not be seen on its node for a while, and Tune must not
    start a run again that has failed as often as it may. None: it was stopped; Tune wants a result also of that."""
    from ray import tune

    told = json.dumps(outcome and dataclasses.asdict(outcome))
    tune.report({ENDED: told, "step": outcome.step if outcome else 0, "objective": math.nan})


def _wait_for_nodes() -> None:
    """Let `urg.train` wait for the cluster's nodes as it does in the driver of a job, instead of refusing to start
    where none is there yet: Ray sets the variable by which it knows a cluster for the driver alone."""
    import ray

    from data_pipeline.ray_session import on_cluster

    if not on_cluster():
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def _run(settings: dict[str, Any], blueprint: Blueprint, unit: Unit, until: Path | None = None) -> Outcome | None:
    """Train, or go on training, to the end; None where the sweep was told to stop. Raises what has ended Ray's
    controller where a worker was lost while it started: Tune then starts a new actor, as often as `retries` allows."""
    from urg.train import is_lost_start

    run = blueprint.trials_folder / unit.name
    run.mkdir(parents=True, exist_ok=True)
    with (run / SESSIONS).open("a") as file:
        file.write(f"{time.time()}\n")
    try:
        config = blueprint.train_config(settings["point"], unit, settings["shards"])
        with ThreadPoolExecutor(1) as pool:
            _watch(run, blueprint.config.objective[0], pool.submit(_train, config, run, settings["tags"], until))
        checkpoints.seen(lambda: bool(read_evaluations(run)))  # which a worker on another node has written
        evaluations = read_evaluations(run)
        outcome = counted(evaluations[-1:] if unit.fold is not None else evaluations, blueprint.config.objective)
    except Stopped:
        return None
    except Exception as error:  # whatever it is ends this trial, not the sweep
        if is_lost_start(error):  # which `urg.train` mends only in a session of its own
            if is_gone(run / UNTIL_STOPPED):
                return None
            raise
        outcome = Outcome("failed", reason=reason_of(error))
    return dataclasses.replace(outcome, seconds=elapsed(run, time.time()))


def _train(config: Any, run: Path, tags: dict[str, str], until: Path | None = None) -> None:
    """`urg.train`, once the process that ran this trial before a kill is gone; again, where a worker was told to end
    and the sweep was not. Raises Stopped where it was (`tuning.stopping`): it need not train for that."""
    from data_pipeline.commit import locked
    from urg.train import train

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with locked(run, busy="trains"):
                break
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)
    while True:
        if until is not None and is_gone(until):
            raise Stopped("stopped: the sweep begins nothing more.")
        try:
            train(config, tags)
            return
        except Stopped:
            if is_gone(run / UNTIL_STOPPED):
                raise


def _watch(run: Path, objective: str, training: Future[None]) -> None:
    """Report each evaluation to Tune until the training has ended. Raises what the training raised."""
    from ray import tune

    reported: set[int] = set()
    while True:
        ended = training.done()
        for evaluation in read_evaluations(run):
            if evaluation.step not in reported:
                reported.add(evaluation.step)
                value = evaluation.metrics.get(objective, math.nan)
                tune.report({**evaluation.metrics, "step": evaluation.step, "objective": value})
        if ended:
            return training.result()
        time.sleep(POLL)


def elapsed(run: Path, now: float) -> float:
    """What the run has taken over all its sessions; one that was killed counts up to its last evaluation."""
    begins = [float(line) for line in (run / SESSIONS).read_text().splitlines()]
    evaluated = [evaluation.seconds for evaluation in read_evaluations(run)]
    total = 0.0
    for begin, following in itertools.pairwise([*begins, math.inf]):
        within = [moment for moment in evaluated if begin <= moment < following]
        total += (now if following == math.inf else max(within, default=begin)) - begin
    return total


def counted(evaluations: Sequence[Evaluation], objective: Sequence[str]) -> Outcome:
    """The outcome of a run that went to its end: its best evaluation by the first objective, the earlier of equals. A
    fold's is its last alone, for the best of several on the part that is held out would be chosen by it."""
    if not evaluations:
        return Outcome("failed", reason="it ended without an evaluation on the dev split.")
    for name in objective:
        values = [evaluation.metrics[name] for evaluation in evaluations if name in evaluation.metrics]
        if not values:
            return Outcome("failed", reason=never_reported(name, evaluations))
        if not all(math.isfinite(value) for value in values):
            return Outcome("failed", reason=f"{name} is not finite: the training has diverged.")
    whole = [evaluation for evaluation in evaluations if all(name in evaluation.metrics for name in objective)]
    if not whole:
        return Outcome("failed", reason=f"no evaluation has all of {', '.join(objective)}.")
    best = max(whole, key=lambda evaluation: (evaluation.metrics[objective[0]], -evaluation.step))
    return Outcome("finished", [best.metrics[name] for name in objective], best.step)


def never_reported(name: str, evaluations: Sequence[Evaluation]) -> str:
    """The sentence for an objective that no evaluation has."""
    there = sorted({metric for evaluation in evaluations for metric in evaluation.metrics})
    return f"{NEVER}: {name}; the dev split gave {', '.join(there) or 'nothing'}: choose one of these as --objective."


NEVER = "the objective was never reported"


def reason_of(error: BaseException) -> str:
    """Why a run failed, in one line: the innermost error of the first worker that failed; of one that ran out of memory
    or died, if there is one, for the others then say that they have lost it."""
    failures = list((getattr(error, "worker_failures", None) or {0: error}).values())
    failure = min(failures, key=lambda one: (not _is_of_memory(one), not _GUESSES.search(str(one))))
    text = _said(failure)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if _KILLED_BY_RAY.match(line)]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    line = " ".join((telling or named or lines or [text])[-1].split())[:500]
    return f"out of memory: {line}" if _is_of_memory(failure) else line


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(_said(error)) is not None


def _said(error: BaseException) -> str:
    """What an error says, but for Ray's guesses."""
    return (
        _GUESSES.sub("Killed, perhaps by the system for want of memory, or crashed.", str(error))
        or type(error).__name__
    )
