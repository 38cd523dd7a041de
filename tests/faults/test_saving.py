"""Killed at any point of a save, and with any bit of a checkpoint flipped: what is loaded afterwards is whole."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.damage import DAMAGES, damage, flip
from urg.config import EvalConfig, TrainConfig
from urg.training import checkpoints, loop
from urg.training.state import TrainState

pytestmark = pytest.mark.faults

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copytree", "shutil.rmtree"}
"""Python's audit events of what changes a disk."""


class _Engine:
    """Writes and reads a state by what the training loop calls; a model that is its step, in the place of weights."""

    def __init__(self, state: TrainState) -> None:
        self._state = state

    def save(self, folder: Path) -> None:
        (folder / "state").mkdir(parents=True)
        for rank in (0, 1):
            (folder / "state" / f"rank-{rank}.pt").write_bytes(f"step {self._state.step}".encode() * 100)

    def load(self, folder: Path) -> None:
        self.loaded = (folder / "state" / "rank-0.pt").read_bytes()

    def full_weights(self) -> dict[str, Any]:
        return {}


class _Task:
    def save(self, folder: Path, weights: dict[str, Any], step: int) -> None:
        (folder / "weights").write_text(f"model of step {step}")

    def card(self, step: int, metrics: dict[str, float]) -> str:
        return f"card of step {step}"


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], loop.Trainer]:
    """trainer(): rank 0 of the training loop with its real saving and resuming, but no model and no other worker."""
    import ray.train
    from torch import distributed

    for name in ("barrier", "broadcast_object_list"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    monkeypatch.setattr(ray.train, "report", lambda *_, **__: None)
    monkeypatch.setattr(loop.ray_metrics, "checkpoint_written", lambda *_: None)
    config = TrainConfig(keep_checkpoints=2, eval=EvalConfig(metric="rougeL"))

    def make() -> loop.Trainer:
        trainer = object.__new__(loop.Trainer)
        trainer.config, trainer.rank, trainer.world = config, 0, 2
        trainer.job = SimpleNamespace(run=tmp_path, config=config, resume_from=None)  # type: ignore[assignment]
        trainer.log = SimpleNamespace(line=lambda text: None)  # type: ignore[assignment]
        trainer.state, trainer.task = TrainState(), _Task()  # type: ignore[assignment]
        trainer.engine = _Engine(trainer.state)  # type: ignore[assignment]
        return trainer

    return make


def _save(trainer: loop.Trainer, step: int) -> None:
    """As after an evaluation that found this step to be the best so far."""
    trainer.state.step = trainer.state.best_step = step
    trainer.state.best_metric = float(step)
    trainer._checkpoint({trainer.config.eval.metric: float(step)})


def _die_at(change: int) -> None:
    """SIGKILL this process before it makes the disk's `change`th change from now on."""
    left = [change]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _saves_in_a_child(trainer: loop.Trainer, step: int, change: int) -> bool:
    """Save in a child that dies before its `change`th change of the disk; whether it came to the end before."""
    child = os.fork()
    if child == 0:
        _die_at(change)
        _save(trainer, step)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


def test_killed_at_any_point_of_a_save_a_run_goes_on_from_a_whole_checkpoint(
    trainer: Callable[[], loop.Trainer], tmp_path: Path
) -> None:
    """The child dies before its first change of the disk, before its second, …, until it comes to the end."""
    before = trainer()
    for step in (1, 2):
        _save(before, step)
    points, step, resumed_at = 0, 3, set()
    while not _saves_in_a_child(before, step, points):
        after = trainer()
        state = after._resume()
        resumed_at.add(step - state.step)
        assert after.engine.loaded == f"step {state.step}".encode() * 100  # type: ignore[attr-defined]
        assert state.best_step == state.step
        assert (tmp_path / "model" / "weights").read_text() == f"model of step {state.step}"
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["README.md", "weights"]
        assert [wrong for folder in tmp_path.glob("checkpoint-*") if (wrong := checkpoints.damage(folder))] == []
        _save(after, state.step + 1)
        assert len(list(tmp_path.glob("checkpoint-*"))) == 2
        before, step, points = after, state.step + 2, points + 1
    assert points > 40
    assert resumed_at == {0, 1}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named_and_the_newest_whole_checkpoint_is_loaded(
    trainer: Callable[[], loop.Trainer], tmp_path: Path, how: str
) -> None:
    random = Random(how)
    for _ in range(20):
        made = trainer()
        for step in (1, 2):
            _save(made, step)
        newest = checkpoints.newest_whole(tmp_path)[0]
        assert newest is not None
        damaged = damage(newest, how, random)
        wrong = checkpoints.damage(newest)
        assert wrong is not None
        assert (newest.name if how == "no manifest" else str(damaged)) in wrong
        after = trainer()
        assert after._resume().step == 1
        assert (tmp_path / "model" / "weights").read_text() == "model of step 1"
        _save(after, 2)


def test_no_bit_of_a_manifest_can_flip_and_lead_astray(trainer: Callable[[], loop.Trainer], tmp_path: Path) -> None:
    """Each one makes the checkpoint a damaged one, or changes nothing that is loaded."""
    _save(trainer(), 1)
    (folder,) = tmp_path.glob("checkpoint-*")
    manifest, state, found = folder / "manifest.json", checkpoints.load_state(folder), 0
    bits = 8 * manifest.stat().st_size
    for bit in range(bits):
        flip(manifest, bit)
        found += checkpoints.damage(folder) is not None
        assert checkpoints.load_state(folder) == state
        flip(manifest, bit)
    assert checkpoints.damage(folder) is None
    assert found > bits / 2
