"""Thirty faults of every kind in one run, drawn by a seed: it ends with the weights of a run that nothing befell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch

from cluster.local_cluster import LocalCluster
from tests.faults.damage import DAMAGES, break_snapshot, damage
from tests.faults.test_tracking_outage import require_tracked
from tests.faults.training import Run, require_same, training_workers
from tests.mlflow_server import MlflowServer, mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(1200)]

SEED = 20240607


@dataclass
class Stage:
    """Who can be hurt."""

    run: Run
    cluster: LocalCluster
    server: MlflowServer
    random: Random


def _kill_worker(stage: Stage) -> None:
    stage.random.choice(training_workers()).kill()


def _kill_driver(stage: Stage) -> None:
    break_snapshot(stage.run.folder, stage.random)
    stage.run.kill()
    stage.run.start()


def _kill_node(stage: Stage) -> None:
    """One with a worker on it; another node comes later."""
    busy = [node for node in stage.cluster.workers if training_workers(node.process.pid)]
    stage.cluster.kill(stage.random.choice(busy))
    stage.cluster.add_node(wait=False)


def _damage_checkpoint(stage: Stage) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has just been removed, as too old
        damage(stage.run.newest(), stage.random.choice(DAMAGES), stage.random)


def _kill_mlflow(stage: Stage) -> None:
    stage.server.kill()
    stage.server.launch()


FAULTS: dict[str, Callable[[Stage], None]] = {
    "worker": _kill_worker,
    "driver and snapshot": _kill_driver,
    "node": _kill_node,
    "checkpoint": _damage_checkpoint,
    "mlflow": _kill_mlflow,
}


def _drawn(random: Random) -> list[list[str]]:
    """Blows: a kill, and in ten of them another fault just before it. Thirty faults, for a driver's kill is two."""
    others = ["worker"] * 12 + ["node"] * 2
    before = ["checkpoint"] * 8 + ["mlflow"] * 2 + [""] * 4
    random.shuffle(before)
    blows = [[fault, kill] if fault else [kill] for fault, kill in zip(before, others, strict=True)]
    blows += [["driver and snapshot"]] * 3
    random.shuffle(blows)
    return blows


def test_thirty_faults_leave_no_trace(
    make_run: Callable[..., Run], cluster: LocalCluster, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    random = Random(SEED)
    with mlflow_server(tmp_path / "server") as server:
        run = make_run("chaos", cluster.environment(), tracking__uri=server.uri)
        stage = Stage(run, cluster, server, random)
        run.start()
        run.wait(lambda: len(run.checkpoints()) >= 2)
        for blow in _drawn(random):
            with run.resumed(random.choice((1, 1, 2, 3))):
                for fault in blow:
                    FAULTS[fault](stage)
        run.finish()
        require_same(run.weights(), undisturbed)
        assert "passing over a damaged checkpoint" in run.log()
        assert len(list(run.folder.glob("checkpoint-*"))) == 4 == len(run.checkpoints())
        require_tracked(server.store)
