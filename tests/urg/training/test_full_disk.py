"""A disk that is full when a checkpoint is written: said in one sentence, nothing lost; with room the run goes on."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import UserError
from tests.small_disk import mounted_disk
from urg.config import TrainConfig
from urg.train import train
from urg.training import checkpoints
from urg.training.state import Outcome

Make = Callable[..., TrainConfig]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_the_errors_of_a_full_disk_are_told_from_others(tmp_path: Path) -> None:
    assert checkpoints.is_for_want_of_room(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert not checkpoints.is_for_want_of_room(OSError(errno.EIO, "I/O error"), tmp_path)
    assert not checkpoints.is_for_want_of_room(RuntimeError("file write failed"), tmp_path)  # there is room


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_it_and_the_run_goes_on_from_there(
    make_config: Make, run_workers: Callable[..., list[Outcome | None]]
) -> None:
    """The limit is on the size of a file: the system refuses the very writes that it refuses on a full disk. The first
    lets a model pass, and no optimizer's state; the second not even the model that is published on resuming."""
    config = make_config(engine__workers=2, engine__dtype="bf16")
    run = Path(config.storage) / config.name
    assert run_workers(config) == [Outcome()] * 2
    [third, sixth] = sorted(run.glob("checkpoint-*"))
    expected = _weights(sixth)
    shutil.rmtree(sixth)
    for limit, target in ((300_000, "checkpoint-00000006"), (100_000, "run/model")):
        first, second = run_workers(config, limit=limit)
        assert first == second
        assert first is not None
        assert f"no room for {run.parent}" in str(first.refusal)
        assert target in str(first.refusal)
    assert list(run.glob("checkpoint-*")) == [third]
    assert checkpoints.damage(third) is None
    assert run_workers(config) == [Outcome()] * 2
    found = _weights(max(run.glob("checkpoint-*")))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_another_number_of_workers_that_finds_no_room_refuses_and_goes_on_with_room(
    make_config: Make, run_workers: Callable[..., list[Outcome | None]]
) -> None:
    """The limit lets a line of the log pass, and no parameter of the embedding."""
    elastic = {"engine__workers": 2, "engine__min_workers": 1, "checkpoint_every": 2}
    config = make_config(steps=4, eval__every=4, **elastic)
    run = Path(config.storage) / config.name
    assert run_workers(config) == [Outcome()] * 2
    [second, fourth] = sorted(run.glob("checkpoint-*"))
    shutil.rmtree(fourth)
    (outcome,) = run_workers(config, 1, limit=50_000)
    assert outcome is not None
    assert f"no room for {run / '.resized'}" in str(outcome.refusal)
    assert not (run / ".resized").exists()
    assert checkpoints.damage(second) is None
    assert run_workers(config, 1) == [Outcome()]
    assert "written by 2 workers, now 1" in (run / "train.log").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes; the test is skipped where this user may not mount one."""
    with mounted_disk(tmp_path / "runs", "2m") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        yield tmp_path / "runs"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_small_disk_fills_up_under_ray_and_is_made_larger(
    configure: Make, ray_started: None, small_disk: Path
) -> None:
    config = configure(small_disk, engine__workers=2, engine__dtype="bf16", steps=12, keep_checkpoints=12)
    with pytest.raises(UserError, match=r"no room for .*the same command goes on from there"):
        train(config)
    kept = sorted((small_disk / config.name).glob("checkpoint-*"))
    assert kept
    assert all(checkpoints.damage(folder) is None for folder in kept)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(config)
    assert f"resuming from {kept[-1]}" in (small_disk / config.name / "train.log").read_text()
    assert len(list((small_disk / config.name).glob("checkpoint-*"))) > len(kept)
