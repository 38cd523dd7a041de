"""A training that shrinks when a node goes and grows when one comes; and one whose node is announced to go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from cluster.local_cluster import LocalCluster, Node
from tests.faults.training import Run, training_workers

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(900)]

STEPS = 300
QUICK = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "4", "initial_delay_ms": "500"}
NODES = {f"RAY_health_check_{name}": value for name, value in QUICK.items()}


def _busy(cluster: LocalCluster) -> Node:
    """A node, not the head, with a worker of the training on it."""
    return next(node for node in cluster.workers if training_workers(node.process.pid))


def test_two_workers_become_one_when_a_node_dies_and_two_when_another_comes(make_run: Callable[..., Run]) -> None:
    """No step is left out, and each has the same rows: the global batch of one worker is that of two."""
    with LocalCluster(2, cpus=1, environment=NODES) as cluster:
        options = {"engine__min_workers": 1, "engine__resize_every_s": 5, "steps": STEPS, "eval__every": STEPS}
        run = make_run("resized", cluster.environment(), **options)
        run.start()
        run.wait(lambda: len(run.checkpoints()) >= 2)
        with run.resumed():
            cluster.kill(_busy(cluster))
        assert "written by 2 workers, now 1" in run.log()
        with run.resumed():
            cluster.add_node()
        assert "written by 1 workers, now 2" in run.log()
        run.finish()
        assert sorted(set(run.steps())) == list(range(1, STEPS + 1))


def test_a_checkpoint_is_written_when_a_node_is_announced_to_go(make_run: Callable[..., Run]) -> None:
    """Ray drains the node, as on the notice of a spot instance; then it dies, and the others go on from there."""
    with LocalCluster(3, cpus=1, environment=NODES) as cluster:
        run = make_run("drained", cluster.environment(), steps=STEPS, checkpoint_every=1000, eval__every=STEPS)
        run.start()
        run.wait(lambda: len(run.steps()) >= 3)
        going = _busy(cluster)
        drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
        drain += ["--node-id", cluster.alive()[going.address], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        drain += ["--reason-message", "rehearsal", "--deadline-remaining-seconds", "600"]
        subprocess.run(drain, env=run.environment, check=True, timeout=120)
        run.wait(lambda: "a node will be taken away: wrote a checkpoint" in run.log())
        with run.resumed():
            cluster.kill(going)
        run.finish()
        assert sorted(set(run.steps())) == list(range(1, STEPS + 1))
