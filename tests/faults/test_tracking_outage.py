"""MLflow is away for the middle of a run, or all the time: the run ends as ever, and every point is there, once."""

from __future__ import annotations

import subprocess
import sys
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

AWAY = range(12, STEPS - 14)
"""The steps in which the server is away."""


def require_tracked(store: str) -> None:
    """The store has one run, finished, with every point of it once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    (tracked,) = client.search_runs([client.get_experiment_by_name("urg").experiment_id])
    assert tracked.info.status == "FINISHED"
    for metric, expected in {"train/loss": range(1, STEPS + 1), "dev/label": (30, 60)}.items():
        steps = [point.step for point in client.get_metric_history(tracked.info.run_id, metric)]
        assert sorted(steps) == list(expected), metric


def _seconds(run: Run) -> dict[int, float]:
    """How long each step took, from the checkpoint before it to its own."""
    ends = [(folder / "manifest.json").stat().st_mtime for folder in run.checkpoints()]
    assert len(ends) == STEPS
    return {step: after - before for step, (before, after) in enumerate(pairwise(ends), start=2)}


def test_away_in_the_middle_of_a_run(
    make_run: Callable[..., Run], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """For more than a minute, in which a step takes as long as before it."""
    slow = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2"}
    with mlflow_server(tmp_path / "server") as server:
        run = make_run("middle", slow, tracking__uri=server.uri, keep_checkpoints=STEPS)
        run.start()
        run.wait(lambda: AWAY[0] in run.steps())
        server.kill()
        run.wait(lambda: AWAY[-1] in run.steps())
        server.launch()
        run.finish()
        seconds = _seconds(run)
        assert median(map(seconds.get, AWAY[1:])) < 1.5 * median(map(seconds.get, range(3, AWAY[0])))
        assert run.steps() == list(range(1, STEPS + 1))
        require_tracked(server.store)
    require_same(run.weights(), undisturbed)


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
