"""Thirty faults of every kind in one run, in an order drawn by a seed: it ends with the weights of a run that nothing
befell.

Of every kind but two, which change the weights by what they are: a step whose gradients are not finite is left out
(tests/urg/training/test_guard.py), and another number of workers has other keys of dropout (test_resizing.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from cluster.local_cluster import LocalCluster
from data_pipeline.shards import ShardSet
from tests.faults.stage import KINDS, Stage
from tests.faults.test_tracking_outage import require_tracked
from tests.faults.training import NODES, STARTS_NODES, Run, require_same
from tests.mlflow_server import mlflow_server
from tests.small_disk import mounted_disk

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(2400), STARTS_NODES]

SEED = 20240607
BLOWS = (
    ("checkpoint", "save"),
    ("checkpoint", "save"),
    ("mlflow", "checkpoint", "worker", "node"),
    ("checkpoint", "worker", "worker", "driver"),
    ("snapshot", "worker", "driver", "shard"),
    ("snapshot", "disk", "checkpoint"),
    ("SIGTERM", "checkpoint", "node"),
    ("SIGTERM", "head"),
    ("drained",),
    ("cut off", "mlflow"),
)
"""Kinds that strike together: a recovery takes half a minute, for new workers import all that a worker needs."""
LAST = ("mlflow", "worker", "start")
"""The last blow: whoever goes on from it sends to MLflow what a worker that was cut off could not."""
CAN_CUT_OFF = os.geteuid() == 0 and shutil.which("ip") is not None


def _drawn(random: Random, impossible: set[str]) -> list[tuple[str, ...]]:
    """The blows in random order; a worker dies in the place of what cannot be done here."""
    blows = [*random.sample(BLOWS, len(BLOWS)), LAST]
    return [tuple("worker" if kind in impossible else kind for kind in blow) for blow in blows]


def test_thirty_faults_leave_no_trace(
    make_run: Callable[..., Run], undisturbed: dict[str, torch.Tensor], shards: Path, tmp_path: Path
) -> None:
    random, own = Random(SEED), tmp_path / "shards"
    shutil.copytree(shards, own)
    folder = ShardSet.open(own).folder
    shard = folder / ShardSet.open(own).manifest["splits"]["train"]["shards"][0]["file"]
    with (
        mounted_disk(tmp_path / "runs", "64m") as mounted,  # first: a node has the file systems of when it was started
        LocalCluster(3, isolate=CAN_CUT_OFF, environment=NODES, start_timeout=300) as cluster,
        mlflow_server(tmp_path / "server", cluster.head.address) as server,
    ):
        impossible = {kind for kind, can in {"cut off": CAN_CUT_OFF, "disk": mounted}.items() if not can}
        blows = _drawn(random, impossible)
        print(*blows, f"left out, as this user may not: {', '.join(sorted(impossible)) or 'nothing'}", sep="\n")
        assert sum(map(len, blows)) == 30
        run = make_run("chaos", cluster.environment(), tracking__uri=server.uri, data__shards=own)
        stage = Stage(run, cluster, server, shard, random)
        run.start()
        run.wait(lambda: len(run.checkpoints()) >= 2)
        for blow in blows:
            _strike(stage, blow)
        run.finish()
        assert stage.unfinished
        assert "passing over a damaged checkpoint" in run.log()
        assert len(list(run.folder.glob("checkpoint-*"))) == 4 == len(run.checkpoints())
        require_same(run.weights(), undisturbed)
        require_tracked(server.store)


def _strike(stage: Stage, blow: tuple[str, ...]) -> None:
    """Do to the run all of a blow, give the same command again where it has ended, and wait until it goes on."""
    run = stage.run
    with run.resumed(stage.random.choice((1, 1, 1, 2))):
        for kind in blow:
            KINDS[kind](stage)
        if run.process is None or run.process.poll() is not None:
            run.start()
    while stage.afterwards:
        stage.afterwards.pop()()
    assert not [folder for folder in stage.unfinished if folder.exists()]
