"""A tiny `python -m urg.train` as a process of its own, to be hurt and started again; and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cluster.local_cluster import LocalCluster, Node

ROOT = Path(__file__).parents[2]
STEPS = 60
OPTIONS: dict[str, Any] = {
    "steps": STEPS,
    "data.label": "rougeL",
    "model.chunk_tokens": 512,
    "batch.micro": 2,
    "checkpoint_every": 1,
    "keep_checkpoints": 4,
    "eval.every": 30,
    "eval.rows": 3,
    "eval.metric": "label",
    "eval.max_new_tokens": 4,
    "engine.workers": 2,
    "engine.dtype": "bf16",
    "engine.max_failures": 100,
    "tracking.uri": "off",
    "tracking.log_every": 1,
    "optim.lr": 0.01,
    **{f"model.scratch.{key}": value for key, value in {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}.items()},
}
"""Two workers, dropout on, a checkpoint a step; all runs with these end with the same weights, whatever befell them."""
_HEALTH = {"period_ms": "500", "timeout_ms": "2000", "failure_threshold": "5", "initial_delay_ms": "500"}
NODES = {f"RAY_health_check_{name}": value for name, value in _HEALTH.items()}
"""The environment of nodes whose loss is noticed within 13 seconds, not within a minute."""
STARTS_NODES = pytest.mark.xdist_group("nodes")
"""Of tests that run one after another: on two cores, of two clusters each would find the other's nodes dead."""
PACE_S = 1.0
"""How often Ray Train looks at its workers, and takes a checkpoint's report: with one a step, the time of a step."""
_STEP = re.compile(r"^step (\d+)/\d+  loss")


class Run:
    """A run of `urg.train` on `shards`. environment: over this process's own, a cluster's for one."""

    def __init__(
        self, shards: Path, storage: Path, name: str, environment: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        values = OPTIONS | {"name": name, "storage": storage, "data.shards": shards}
        values |= {key.replace("__", "."): value for key, value in options.items()}
        self.arguments = [part for key, value in values.items() for part in (f"--{key}", str(value))]
        self.command = [sys.executable, "-m", "urg.train", *self.arguments]
        self.folder, self.said = storage / name, storage / f"{name}.out"
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
        pace = {f"RAY_TRAIN_{of}_INTERVAL_S": str(PACE_S) for of in ("HEALTH_CHECK", "PREEMPTION_POLL")}
        self.environment = own | {"PYTHONPATH": str(ROOT)} | pace | dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._said_before = 0
        storage.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the command, or start it again."""
        with self.said.open("ab") as stream:
            self._said_before = stream.tell()
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=stream,
                stderr=stream,
                cwd=ROOT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to the driver and, where it has a Ray of its own, to that."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def finish(self, timeout: float = 400) -> None:
        """Wait for the end, which must be a good one."""
        self.ends(0, timeout)

    def ends(self, expected: int, timeout: float = 400) -> str:
        """Wait for the end, which must be with this exit code; what the command has said since it was started last."""
        assert self.process
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        said = self.said.read_bytes()[self._said_before :].decode()
        assert code == expected, f"{code}: {said[-3000:]}\n{self.log()[-1500:]}"
        return said

    def whole(self) -> None:
        """From start to end."""
        self.start()
        self.finish()

    def log(self) -> str:
        """What the run has said of itself, all attempts together."""
        path = self.folder / "train.log"
        return path.read_text() if path.exists() else ""

    def steps(self) -> list[int]:
        """The steps that were logged, in order, repeated ones again."""
        return [int(found[1]) for found in map(_STEP.match, self.log().splitlines()) if found]

    def wait(self, condition: Callable[[], Any], timeout: float = 240, every: float = 0.02) -> None:
        """Return when the condition holds; fails where the run ends first, or it takes too long. every: seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process, "it was not started"
            assert self.process.poll() is None, f"the run has ended: {self.said.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"it takes too long: {self.log()[-1500:]}"
            time.sleep(every)

    @contextmanager
    def resumed(self, steps: int = 2) -> Iterator[None]:
        """For the block that hurts the run: afterwards, wait until it has resumed and gone on by so many steps."""
        before = self.log().count("resuming from")
        yield
        self.wait(lambda: self.log().count("resuming from") > before)
        position = len(self.steps())
        self.wait(lambda: len(self.steps()) >= position + steps)

    def checkpoints(self) -> list[Path]:
        """The finished ones, in the order of their steps."""
        return sorted(path.parent for path in self.folder.glob("checkpoint-*/manifest.json"))

    def newest(self) -> Path:
        """The checkpoint that was finished last."""
        while True:
            try:
                return max(self.folder.glob("checkpoint-*/manifest.json"), key=lambda path: path.stat().st_mtime).parent
            except FileNotFoundError:  # one has just been removed, as too old
                continue

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint."""
        return load_file(self.newest() / "model" / "model.safetensors")


def require_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The same weights, bit for bit."""
    assert ours.keys() == theirs.keys()
    assert [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])] == []


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 90) -> None:
    """Return when the condition holds; fails, saying what was awaited, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"awaited in vain: {what}"
        time.sleep(0.05)


def training_workers(ancestor: int | None = None) -> list[psutil.Process]:
    """Ray Train's workers among the descendants of a process (default: this one)."""
    found = []
    try:
        family = psutil.Process(ancestor).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in family:
        try:
            if "TrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def busy(cluster: LocalCluster) -> Node:
    """A node, not the head, with a worker of the training on it."""
    return next(node for node in cluster.workers if training_workers(node.process.pid))


def announce_end(cluster: LocalCluster, node: Node) -> None:
    """Have Ray drain a node, as on the notice of a spot instance."""
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    drain += ["--node-id", cluster.alive()[node.address], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drain += ["--reason-message", "rehearsal", "--deadline-remaining-seconds", "600"]
    subprocess.run(drain, env=os.environ | cluster.environment(), check=True, timeout=120)
