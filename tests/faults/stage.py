"""Every kind of fault that a training run must survive without a trace in its weights, as a deed done to a stage."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from psutil import Process

from cluster.local_cluster import LocalCluster, Node
from tests.faults.damage import DAMAGES, SNAPSHOT, break_snapshot, damage, flip
from tests.faults.training import Run, announce_end, training_workers, wait_until
from tests.mlflow_server import MlflowServer
from tests.small_disk import fill
from urg.training.checkpoints import MANIFEST, PREFIX
from urg.training.state import RESUMES

NO_ROOM = 100_000
"""Bytes that a full disk has left: for a line of a log, and for no checkpoint."""


@dataclass
class Stage:
    """Who can be hurt."""

    run: Run
    """It runs when a blow falls. Kinds that end its driver leave it ended: others of the blow may follow."""
    cluster: LocalCluster
    server: MlflowServer
    shard: Path
    """A shard that the run trains on."""
    random: Random
    afterwards: list[Callable[[], object]] = field(default_factory=list)
    """What is to be done when the run has recovered."""
    unfinished: list[Path] = field(default_factory=list)
    """Checkpoints whose writing was cut short."""


def kill_worker(stage: Stage) -> None:
    victim = stage.random.choice(training_workers())
    victim.kill()
    victim.wait(30)


def kill_at_a_start(stage: Stage) -> None:
    """When a worker has died before: one of those that come in its place, at any moment before it trains."""
    old = {worker.pid for worker in training_workers()}

    def new() -> list[Process]:
        return [worker for worker in training_workers() if worker.pid not in old]

    stage.run.wait(new)
    time.sleep(stage.random.uniform(0, 20))
    stage.run.wait(new)
    stage.random.choice(new()).kill()


def kill_in_a_save(stage: Stage) -> None:
    """All workers at once, while a checkpoint is being written."""
    workers, known = training_workers(), set(stage.run.folder.glob(f"{PREFIX}*"))

    def begun() -> Path | None:
        new = (folder for folder in stage.run.folder.glob(f"{PREFIX}*") if folder not in known)
        return next((folder for folder in new if not (folder / MANIFEST).exists()), None)

    stage.run.wait(begun, every=0.001)
    time.sleep(stage.random.uniform(0, 0.03))  # it takes twice as long
    for worker in workers:
        worker.kill()
    if folder := begun():
        stage.unfinished.append(folder)


def kill_driver(stage: Stage) -> None:
    stage.run.kill()


def stop_driver(stage: Stage) -> None:
    """SIGTERM: it writes a checkpoint and ends."""
    assert stage.run.process
    os.kill(stage.run.process.pid, signal.SIGTERM)
    assert "the same command resumes it" in stage.run.ends(RESUMES)


def spoil_snapshot(stage: Stage) -> None:
    """Ray's own, which the run does not read; it is there when a first checkpoint was reported. Ray may write it anew
    before the run ends: that a start meets a damaged one is sure in test_snapshot.py."""
    stage.run.wait((stage.run.folder / SNAPSHOT).exists)
    break_snapshot(stage.run.folder, stage.random)


def damage_checkpoint(stage: Stage) -> None:
    """The newest."""
    with contextlib.suppress(FileNotFoundError):  # it has just been removed, as too old
        damage(stage.run.newest(), stage.random.choice(DAMAGES), stage.random)


def flip_a_bit_of_a_shard(stage: Stage) -> None:
    """While the driver is down; the next one names it. Then the file is put back."""
    wait_until(lambda: not training_workers(), "the workers of the driver that ended have ended")
    bit = stage.random.randrange(8 * stage.shard.stat().st_size)
    flip(stage.shard, bit)
    try:
        stage.run.start()
        (said,) = stage.run.ends(2, timeout=120).splitlines()
        assert str(stage.shard) in said
    finally:
        flip(stage.shard, bit)


def fill_disk(stage: Stage) -> None:
    """The run ends with a sentence about its next checkpoint; then there is room again."""
    disk = stage.run.folder.parent
    try:
        while stage.run.process and stage.run.process.poll() is None:  # it deletes what is old
            fill(disk, NO_ROOM)
            time.sleep(0.1)
        (said,) = (line for line in stage.run.ends(2).splitlines() if "no room for" in line)
        assert f"{stage.run.folder}/{PREFIX}" in said
    finally:
        (disk / "ballast").unlink()


def kill_node(stage: Stage) -> None:
    """One with a worker on it, where there is one; another node comes."""
    stage.cluster.kill(_node(stage))
    stage.cluster.add_node()


def drain_node(stage: Stage) -> None:
    """Its end is announced, the run writes a checkpoint, it dies; another node comes."""
    written = "a node will be taken away: wrote a checkpoint"
    node, before = _node(stage), stage.run.log().count(written)
    announce_end(stage.cluster, node)
    stage.run.wait(lambda: stage.run.log().count(written) > before)
    stage.cluster.kill(node)
    stage.cluster.add_node()


def cut_off_node(stage: Stage) -> None:
    """Its workers run on, and nobody hears of them; another node comes. Back in the network once it was given up, it
    ends by itself."""
    node = _node(stage)
    stage.cluster.cut_off(node)
    assert training_workers(node.process.pid)
    stage.cluster.add_node()
    wait_until(lambda: node.address not in stage.cluster.alive(), "the node is given up")
    stage.cluster.reconnect(node)

    def forget() -> None:
        wait_until(lambda: not training_workers(node.process.pid), "its workers end")
        stage.cluster.kill(node)

    stage.afterwards.append(forget)


def restart_head(stage: Stage) -> None:
    """It knows nothing of before: its nodes and the driver end, and others come."""
    stage.cluster.restart_head()
    stage.run.kill()
    for node in list(stage.cluster.workers):
        stage.cluster.kill(node)
    stage.cluster.add_node(wait=False)
    stage.cluster.add_node()


def kill_mlflow(stage: Stage) -> None:
    stage.server.kill()
    stage.server.launch()


KINDS: dict[str, Callable[[Stage], None]] = {
    "worker": kill_worker,
    "start": kill_at_a_start,
    "save": kill_in_a_save,
    "driver": kill_driver,
    "SIGTERM": stop_driver,
    "snapshot": spoil_snapshot,
    "checkpoint": damage_checkpoint,
    "shard": flip_a_bit_of_a_shard,
    "disk": fill_disk,
    "node": kill_node,
    "drained": drain_node,
    "cut off": cut_off_node,
    "head": restart_head,
    "mlflow": kill_mlflow,
}


def _node(stage: Stage) -> Node:
    """A node, not the head, with a worker of the training on it, else any."""
    used = [node for node in stage.cluster.workers if training_workers(node.process.pid)]
    return stage.random.choice(used or stage.cluster.workers)
