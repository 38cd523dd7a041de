"""MLflow is silent or away for parts of a run, or away all the time: the run ends as ever, and every point is there,
once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.faults.training import ROOT, STEPS, Run, require_same
from tests.mlflow_server import dead_uri, mlflow_server
from urg.tracking import default_uri

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]

LAST = 160
LONG = dict.fromkeys(("steps", "eval__every", "checkpoint_every"), LAST)
"""A run whose steps nothing paces, as a checkpoint at each would: Ray Train takes one a second."""
WARM = 10
"""The steps that warm up."""
TURNS = range(20, 111, 15)
"""The steps at which the server falls silent and, in turn, answers again; at the last one it is killed."""
BACK = 130
"""The step at which it is started anew."""
PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1000"}
"""How long a request waits for an answer: longer than the test waits for a step."""
RATIO = 1.5
"""What the medians of the steps with and without an answering server may differ by. They take turns, so that other work
on the machine falls on both; `urg.benchmark --experiment faults` measures the ratio."""


def require_tracked(store: str, steps: int = STEPS, evaluated: tuple[int, ...] = (30, 60)) -> dict[int, float]:
    """The store has one run, finished, with every point of it once; when each step was logged, in seconds."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    (tracked,) = client.search_runs([client.get_experiment_by_name("urg").experiment_id])
    assert tracked.info.status == "FINISHED"
    points = {name: client.get_metric_history(tracked.info.run_id, name) for name in ("train/loss", "dev/label")}
    assert sorted(point.step for point in points["train/loss"]) == list(range(1, steps + 1))
    assert sorted(point.step for point in points["dev/label"]) == list(evaluated)
    return {point.step: point.timestamp / 1000 for point in points["train/loss"]}


@pytest.mark.timeout(900)
def test_silent_and_away_in_the_middle_of_a_run(
    make_run: Callable[..., Run], train_calmly: Callable[[Run], None], tmp_path: Path
) -> None:
    """Stopped, the server takes connections and answers none, and goes on when more steps are done: a step that waited
    for an answer would wait for ever. Then it is away, and comes back."""
    calm = make_run("calm", **LONG)
    train_calmly(calm)
    with mlflow_server(tmp_path / "server") as server:
        run = make_run("middle", PATIENT, tracking__uri=server.uri, **LONG)
        run.start()
        turned: list[float] = []
        deeds = [lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT)] * (len(TURNS) // 2)
        for step, deed in zip((*TURNS, BACK), (*deeds, server.kill, server.launch), strict=True):
            run.wait(lambda step=step: step in run.steps())
            deed()
            turned.append(time.time())
        run.finish()
        logged = require_tracked(server.store, steps=LAST, evaluated=(LAST,))
    answered, unanswered = _seconds(logged, turned)
    assert len(answered) > 30
    assert len(unanswered) > 45
    assert median(unanswered) < RATIO * median(answered)
    assert run.steps() == list(range(1, LAST + 1))
    require_same(run.weights(), calm.weights())


def _seconds(logged: dict[int, float], turned: list[float]) -> tuple[list[float], list[float]]:
    """The seconds of each step that lies between two turns: with a server that answers, and with one that does not."""
    found: tuple[list[float], list[float]] = ([], [])
    for begin, end in pairwise(logged[step] for step in range(WARM, LAST + 1)):
        turns = bisect(turned, begin)
        if turns == bisect(turned, end) < len(turned):
            found[turns % 2].append(end - begin)
    return found


def test_away_all_the_time(
    make_run: Callable[..., Run],
    train_calmly: Callable[[Run], None],
    undisturbed: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    run = make_run("away", tracking__uri=dead_uri())
    train_calmly(run)
    require_same(run.weights(), undisturbed)
    store = default_uri(tmp_path)
    replay = [sys.executable, "-m", "urg.tracking.replay", "--spool", str(run.folder / "mlflow-spool"), "--uri", store]
    for _ in range(2):
        subprocess.run(replay, check=True, cwd=ROOT, env=run.environment, timeout=200)
        require_tracked(store)
