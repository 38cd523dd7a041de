"""MLflow is away for the middle of a run, or all the time: the run ends as ever, and every point is there, once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
import torch

from tests.faults.training import ROOT, STEPS, Run, require_same
from tests.mlflow_server import dead_uri, mlflow_server
from urg.tracking import default_uri

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]

LAST = 240
LONG = dict.fromkeys(("steps", "eval__every", "checkpoint_every"), LAST)
"""A run whose steps nothing paces, as a checkpoint at each would: Ray Train takes one a second."""
AWAY = range(40, 180)
"""The steps in which the server is away."""
WAITS = 3.0
"""From which ratio of step times on a step has waited for a server. One takes a fifth of a second, a client's attempts
many; in between is what other work on the machine may do. `urg.benchmark --experiment faults` measures the ratio."""


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
def test_away_in_the_middle_of_a_run(
    make_run: Callable[..., Run], train_calmly: Callable[[Run], None], tmp_path: Path
) -> None:
    """For more than half of it, and no step waits for the server."""
    calm = make_run("calm", **LONG)
    train_calmly(calm)
    with mlflow_server(tmp_path / "server") as server:
        run = make_run("middle", tracking__uri=server.uri, **LONG)
        run.start()
        run.wait(lambda: AWAY[0] in run.steps())
        server.kill()
        gone = time.time()
        run.wait(lambda: AWAY[-1] in run.steps())
        back = time.time()
        server.launch()
        run.finish()
        logged = require_tracked(server.store, steps=LAST, evaluated=(LAST,))
    ends = pairwise(logged[step] for step in range(10, LAST + 1))  # the first ones warm up
    took = [(end, end - begin) for begin, end in ends]
    before = [seconds for end, seconds in took if end < gone]
    away = [seconds for end, seconds in took if gone < end < back]
    assert len(before) > 20
    assert len(away) > 100
    assert mean(away) < WAITS * mean(before)
    assert run.steps() == list(range(1, LAST + 1))
    require_same(run.weights(), calm.weights())


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
