"""A training that shrinks when a node goes and grows when one comes; and one whose node is announced to go."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cluster.local_cluster import LocalCluster
from tests.faults.training import NODES, STARTS_NODES, Run, announce_end, busy

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(900), STARTS_NODES]

STEPS = 60
SMOOTH = {"model__dropout": 0.0, "engine__dtype": "fp32", "optim__clip": 0, "optim__eps": 1.0, "optim__lr": 0.1}
"""Without dropout, whose keys are a worker's. With so large an ε a step is as smooth as its gradient: Adam's usual one
would blow the last bits of a sum, which depend on its order, up to whole steps."""
TOLERANCE = 1e-3
"""Of losses of which a step takes off 0.01 to 0.1: rows, moments or a learning rate of another step would show."""


_WRITTEN = re.compile(r"a node will be taken away: wrote a checkpoint at step (\d+)")


def _losses(run: Run) -> dict[int, float]:
    """By step; of a step that was done twice, the last one."""
    return {int(step): float(loss) for step, loss in re.findall(r"^step (\d+)/\d+  loss ([\d.]+)", run.log(), re.M)}


def test_two_workers_become_one_when_a_node_dies_and_two_when_another_comes(
    make_run: Callable[..., Run], train_calmly: Callable[[Run], None]
) -> None:
    """No step is left out, and each has the same rows, for the global batch of one worker is that of two: the loss
    curve is that of two workers throughout."""
    options = {"steps": STEPS, "eval__every": STEPS, **SMOOTH}
    calm = make_run("calm", **options)
    train_calmly(calm)
    with LocalCluster(2, environment=NODES, start_timeout=300) as cluster:
        elastic = {"engine__min_workers": 1, "engine__resize_every_s": 5}
        run = make_run("resized", cluster.environment(), **elastic, **options)
        run.start()
        run.wait(lambda: len(run.checkpoints()) >= 2)
        with run.resumed():
            cluster.kill(busy(cluster))
        assert "written by 2 workers, now 1" in run.log()
        with run.resumed():
            cluster.add_node()
        assert "written by 1 workers, now 2" in run.log()
        run.finish()
    expected = _losses(calm)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert expected[1] - expected[STEPS] > 1
    assert _losses(run) == pytest.approx(expected, abs=TOLERANCE)


def test_a_checkpoint_is_written_when_a_node_is_announced_to_go(make_run: Callable[..., Run]) -> None:
    """Ray drains the node, as on the notice of a spot instance; then it dies, and the others go on from there. The end
    of so long a run, before which nothing else writes a checkpoint, is not waited for."""
    never = 3000
    with LocalCluster(3, environment=NODES, start_timeout=300) as cluster:
        run = make_run("drained", cluster.environment(), steps=never, checkpoint_every=never, eval__every=never)
        run.start()
        run.wait(lambda: len(run.steps()) >= 3)
        going = busy(cluster)
        announce_end(cluster, going)
        run.wait(lambda: _WRITTEN.search(run.log()))
        with run.resumed():
            cluster.kill(going)
        run.kill()
        before, _, after = run.log().partition("resuming from")
        assert f"at step {_WRITTEN.findall(before)[-1]}, " in after.splitlines()[0]
        assert sorted(set(run.steps())) == list(range(1, max(run.steps()) + 1))
