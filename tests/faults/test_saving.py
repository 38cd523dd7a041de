"""Killed at any point of a save, and with any bit of a checkpoint flipped: what is loaded afterwards is whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.damage import DAMAGES, damage, flip
from urg.config import EvalConfig, TrainConfig
from urg.training import checkpoints, saving
from urg.training.saving import Saver, find_checkpoint
from urg.training.state import IDENTITY, Refused, TrainState

pytestmark = pytest.mark.faults

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copytree", "shutil.rmtree"}
"""Python's audit events of what changes a disk."""


class _Engine:
    """Writes and reads a state by what the training loop calls; a model that is its step, in the place of weights."""

    def __init__(self, state: TrainState) -> None:
        self._state, self.resized = state, False

    def save(self, folder: Path) -> list[Path]:
        """The files of both workers, of which it calls one its own."""
        files = [folder / "state" / f"rank-{rank}.pt" for rank in (0, 1)]
        for file in files:
            file.write_bytes(f"step {self._state.step}".encode() * 100)
        return files[:1]

    def load(self, folder: Path) -> None:
        self.loaded = (folder / "state" / "rank-0.pt").read_bytes()

    def full_weights(self) -> dict[str, Any]:
        return {}


class _Task:
    def save(self, folder: Path, weights: dict[str, Any], step: int) -> None:
        (folder / "weights").write_text(f"model of step {step}")

    def card(self, step: int, metrics: dict[str, float]) -> str:
        return f"card of step {step}"


class _Worker:
    """Rank 0 with its real saving and resuming, but no model and no other worker."""

    def __init__(self, run: Path) -> None:
        config = TrainConfig(keep_checkpoints=2, eval=EvalConfig(metric="rougeL"))
        self.job = SimpleNamespace(run=run, config=config, resume_from=None, fencing_token="")
        self.log = SimpleNamespace(line=lambda text: None)
        self.state = TrainState()
        self.engine = _Engine(self.state)
        self.saver = Saver(self.job, 0, 2, _Task(), self.engine, self.log, lambda: None)  # type: ignore[arg-type]

    def save(self, step: int) -> None:
        """As after an evaluation that found this step to be the best so far."""
        self.state.step = self.state.best_step = step
        self.state.best_metric = float(step)
        self.saver.write(self.state, {"rougeL": float(step)})

    def resume(self) -> TrainState:
        """As a worker that is started anew."""
        folder = find_checkpoint(self.job, 0, self.log)  # type: ignore[arg-type]
        assert folder is not None
        return self.saver.load(folder, checkpoints.load_state(folder))


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], _Worker]:
    """worker(): a worker of a run in `tmp_path`."""
    import ray.train
    from torch import distributed

    (tmp_path / IDENTITY).write_text("{}")
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda *_: None)
    monkeypatch.setattr(distributed, "all_gather_object", lambda gathered, own: gathered.__setitem__(0, own))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(ray.train, "report", lambda *_, **__: None)
    monkeypatch.setattr(saving.ray_metrics, "_set", lambda *_: None)
    return lambda: _Worker(tmp_path)


def _die_at(change: int) -> None:
    """SIGKILL this process before it makes the disk's `change`th change from now on."""
    left = [change]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _saves_in_a_child(worker: _Worker, step: int, change: int) -> bool:
    """Save in a child that dies before its `change`th change of the disk; whether it came to the end before."""
    child = os.fork()
    if child == 0:
        _die_at(change)
        worker.save(step)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


def test_killed_at_any_point_of_a_save_a_run_goes_on_from_a_whole_checkpoint(
    worker: Callable[[], _Worker], tmp_path: Path
) -> None:
    """The child dies before its first change of the disk, before its second, …, until it comes to the end."""
    before = worker()
    for step in (1, 2):
        before.save(step)
    points, step, resumed_at = 0, 3, set()
    while not _saves_in_a_child(before, step, points):
        after = worker()
        state = after.resume()
        resumed_at.add(step - state.step)
        assert after.engine.loaded == f"step {state.step}".encode() * 100
        assert state.best_step == state.step
        assert (tmp_path / "model" / "weights").read_text() == f"model of step {state.step}"
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["README.md", "weights"]
        assert [wrong for folder in tmp_path.glob("checkpoint-*") if (wrong := checkpoints.damage(folder))] == []
        after.save(state.step + 1)
        assert len(list(tmp_path.glob("checkpoint-*"))) == 2
        before, step, points = after, state.step + 2, points + 1
    assert points > 40
    assert resumed_at == {0, 1}


def test_a_worker_that_begins_says_how_old_the_checkpoint_is_that_it_goes_on_from(
    worker: Callable[[], _Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that dies again and again before its next one would show no age, and no alert would come. Without a
    checkpoint of its own, since its driver was started."""
    seen: list[float] = []
    monkeypatch.setattr(saving.ray_metrics, "_set", lambda name, text, time, run: seen.append(time))
    os.utime(tmp_path / IDENTITY, (1000, 1000))
    before = worker()
    assert seen == [1000]
    for step in (1, 2):
        before.save(step)
    older, newer = sorted(tmp_path.glob("checkpoint-*"))
    for folder, written in ((older, 2000), (newer, 3000)):
        os.utime(folder / checkpoints.MANIFEST, (written, written))
    worker().resume()
    assert seen[-2:] == [1000, 3000]
    damage(newer, "delete", Random(0))
    worker().resume()
    assert seen[-1] == 2000
    other = worker()
    other.job.run = tmp_path / "other"
    other.saver.load(older, checkpoints.load_state(older))
    assert seen[-1] == 1000


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named_and_the_newest_whole_checkpoint_is_loaded(
    worker: Callable[[], _Worker], tmp_path: Path, how: str
) -> None:
    random = Random(how)
    for _ in range(20):
        made = worker()
        for step in (1, 2):
            made.save(step)
        newest = checkpoints.newest_whole(checkpoints.newest_first(tmp_path))[0]
        assert newest is not None
        damaged = damage(newest, how, random)
        wrong = checkpoints.damage(newest)
        assert wrong is not None
        assert (newest.name if how == "no manifest" else str(damaged)) in wrong
        after = worker()
        assert after.resume().step == 1
        assert (tmp_path / "model" / "weights").read_text() == "model of step 1"
        after.save(2)


def test_no_bit_of_a_manifest_can_flip_and_lead_astray(worker: Callable[[], _Worker], tmp_path: Path) -> None:
    """Each one makes the checkpoint a damaged one, or changes nothing that is loaded."""
    worker().save(1)
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


def test_a_part_that_went_to_the_disk_of_another_node_ends_the_run_before_it_counts_as_saved(
    worker: Callable[[], _Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker says what it has written, and the first does not find it."""
    before = worker()
    before.save(1)
    (kept,) = tmp_path.glob("checkpoint-*")
    elsewhere = {"state/rank-2.pt": {"bytes": 4, "sha256": "0" * 64}}
    monkeypatch.setattr(checkpoints, "SEEN_WITHIN_S", 0)
    monkeypatch.setattr(saving, "_merged", lambda own: {**own, **elsewhere})
    with pytest.raises(Refused, match=rf"state/rank-2\.pt.*: storage {tmp_path.parent} is not shared by all nodes"):
        before.save(2)
    assert list(tmp_path.glob("checkpoint-*")) == [kept]
    assert worker().resume().step == 1


@pytest.mark.parametrize("at", ["mkdir", "full_weights", "commit", "report"])
def test_workers_that_have_outlived_their_driver_change_nothing_once_the_run_is_started_anew(
    worker: Callable[[], _Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Before a checkpoint, and between its parts: at most the checkpoint itself, which is as good as theirs."""
    import ray.train

    older, newer = worker(), worker()
    newer.job.fencing_token = "the second"
    older.save(1)
    older.save(2)

    def start_anew(*_: Any, **__: Any) -> dict[str, Any]:
        (tmp_path / IDENTITY).write_text(json.dumps({"fencing_token": "the second"}))
        return {}

    if at == "mkdir":
        start_anew()
    elif at == "full_weights":
        monkeypatch.setattr(older.engine, "full_weights", start_anew)
    elif at == "commit":
        committed = checkpoints.commit
        monkeypatch.setattr(checkpoints, "commit", lambda *given: (committed(*given), start_anew()))
    else:
        monkeypatch.setattr(ray.train, "report", start_anew)
    expected = {"mkdir": [2, 1], "full_weights": [2, 1], "commit": [3, 2, 1], "report": [3, 2, 1]}[at]
    with nullcontext() if at == "report" else pytest.raises(Refused, match="this start of the run writes no more"):
        older.save(3)
    assert [int(folder.name.split("-")[1]) for folder in checkpoints.newest_first(tmp_path)] == expected
    assert all(checkpoints.damage(folder) is None for folder in checkpoints.newest_first(tmp_path))
    assert (tmp_path / "model" / "weights").read_text() == f"model of step {3 if at == 'report' else 2}"
    assert newer.resume().step == expected[0]


def test_what_is_due_of_another_run_is_not_due_of_this_one(worker: Callable[[], _Worker], tmp_path: Path) -> None:
    """Its weights would be measured and published as this run's before a step of it."""
    other, own = worker(), tmp_path / "own"
    other.state.evaluation_due = True
    other.save(4)
    newest, *_ = checkpoints.newest_first(tmp_path)
    own.mkdir()
    state = _Worker(own).saver.load(newest, checkpoints.load_state(newest))
    assert (state.step, state.best_metric, state.best_step, state.evaluation_due) == (4, None, 0, False)


@pytest.mark.parametrize("there", [None, "cut sho", '{"fencing_token": "another"}'])
def test_a_worker_on_a_node_without_the_storage_begins_nothing(
    worker: Callable[[], _Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str | None
) -> None:
    """It would take each checkpoint for damaged, and the run would begin anew."""
    worker().save(1)
    monkeypatch.setattr(checkpoints, "SEEN_WITHIN_S", 0)
    (tmp_path / IDENTITY).unlink()
    if there:
        (tmp_path / IDENTITY).write_text(there)
    with pytest.raises(Refused, match="is not shared by all nodes"):
        worker().resume()
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1


@pytest.mark.parametrize("part", ["state", "weights", "README.md", "train_state.json", "manifest.json"])
def test_a_full_disk_at_any_part_leaves_the_checkpoint_before_it(
    worker: Callable[[], _Worker], tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses to write one file; the half-written checkpoint is gone, the one before is whole, and a later
    save finds room."""
    before = worker()
    before.save(1)
    (kept,) = tmp_path.glob("checkpoint-*")
    opened = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        if part in str(path) and "checkpoint-00000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(Refused, match=r"no room for .*checkpoint-00000002.*the same command goes on from there"):
            before.save(2)
    assert list(tmp_path.glob("checkpoint-*")) == [kept]
    assert checkpoints.damage(kept) is None
    assert (tmp_path / "model" / "weights").read_text() == "model of step 1"
    after = worker()
    assert after.resume().step == 1
    after.save(2)
    assert (tmp_path / "model" / "weights").read_text() == "model of step 2"


def test_a_full_disk_in_a_change_of_the_number_of_workers_ends_the_run_and_leaves_no_half_copy(
    worker: Callable[[], _Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any other error it would have the workers started anew, to find the disk full again."""

    def fill(folder: Path, target: Path) -> None:
        (target / "state" / "tmp").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    worker().save(1)
    after = worker()
    after.engine.resized = True
    with monkeypatch.context() as patch:
        patch.setattr(saving, "convert_for_any_number_of_workers", fill)
        with pytest.raises(Refused, match=r"no room for .*\.resized.*the same command goes on from there"):
            after.resume()
    assert not (tmp_path / ".resized").exists()

    def convert(folder: Path, target: Path) -> None:
        shutil.copytree(folder / "state", target / "state")

    (tmp_path / ".resized" / "state" / "tmp").mkdir(parents=True)  # of a worker that was killed
    monkeypatch.setattr(saving, "convert_for_any_number_of_workers", convert)
    assert after.resume().step == 1
    assert after.engine.loaded == b"step 1" * 100
    assert not (tmp_path / ".resized").exists()
