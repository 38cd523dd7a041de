"""Runs that are told to stop, or that hang: nothing is lost, and the final weights do not differ by a bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.urg.training.tampered_task import SlowToJudge
from urg.config import TrainConfig
from urg.train import main, train
from urg.training.evaluations import read_evaluations
from urg.training.notices import UNTIL_STOPPED
from urg.training.state import RESUMES, Outcome, Stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 80
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def make_run(configure: Make, ray_started: None, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_run(name, a__b=c, …): two workers, ZeRO-2, bf16, dropout; a checkpoint at the last step only."""
    options = {"engine__workers": 2, "engine__dtype": "bf16", "steps": STEPS, "eval__every": STEPS}
    return lambda name, **overrides: configure(tmp_path_factory.mktemp("runs"), name, **{**options, **overrides})


@pytest.fixture(scope="module")
def undisturbed(make_run: Make, run_workers: Callable[..., list[Outcome | None]]) -> dict[str, torch.Tensor]:
    """The final weights of a run that nothing happens to; Ray makes no difference to them."""
    config = make_run("calm")
    assert run_workers(config) == [Outcome()] * 2
    return _weights(Path(config.storage) / config.name)


def _log(run: Path) -> str:
    return (run / "train.log").read_text()


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max(run.glob("checkpoint-*")) / "model" / "model.safetensors")


def _require_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name


def _after(run: Path, step: int, act: Callable[[], object]) -> None:
    """Call `act` once, from a thread, when the run's log has a line of this step."""

    def wait() -> None:
        while not ((run / "train.log").exists() and f"step {step}/" in (run / "train.log").read_text()):
            time.sleep(0.02)
        act()

    threading.Thread(target=wait, daemon=True).start()


def _signal_a_worker(number: signal.Signals) -> None:
    """Send a signal to the last worker of this process, of Ray or without it."""
    ours = [(child.pid, " ".join(child.cmdline())) for child in psutil.Process().children(recursive=True)]
    [*_, pid] = [pid for pid, command in ours if "TrainWorker" in command or "worker_without_ray" in command]
    os.kill(pid, number)


def _require_goes_on(config: TrainConfig, stops: int, expected: dict[str, torch.Tensor]) -> None:
    """The run, which was told to stop, goes on to its end: no step twice, no step left out."""
    train(config)
    run = Path(config.storage) / config.name
    log = _log(run)
    assert log.count("told to stop: wrote a checkpoint") == log.count("resuming from") == stops
    assert all(log.count(f"step {step}/{STEPS}  loss") == 1 for step in range(1, STEPS + 1))
    _require_equal(_weights(run), expected)


@pytest.mark.faults
def test_sigterm_to_the_driver_writes_a_checkpoint_that_the_same_command_resumes(
    make_run: Make, undisturbed: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_run("driver")
    _after(Path(config.storage) / config.name, 5, partial(os.kill, os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(config)
    assert ended.value.code == RESUMES == 75
    assert "the same command resumes it" in capsys.readouterr().err
    _require_goes_on(config, 1, undisturbed)


def test_a_stop_in_the_midst_of_an_evaluation_does_not_wait_for_its_end(
    make_run: Make, run_workers: Callable[..., list[Outcome | None]]
) -> None:
    """It is heard after a batch or two of each worker's three; when the run goes on all are measured, at that step."""
    options = {"steps": 6, "eval__every": 6, "eval__rows": 6, "eval__batch": 1}
    config, calm = make_run("evaluates", **options), make_run("undisturbed", **options)
    run = Path(config.storage) / config.name
    _after(run, 6, (run / UNTIL_STOPPED).unlink)
    assert run_workers(config, wrap=SlowToJudge) == [Outcome(stopped_at=6)] * 2
    assert read_evaluations(run) == []
    assert run_workers(config) == run_workers(calm) == [Outcome()] * 2
    [measured], [expected] = read_evaluations(run), read_evaluations(Path(calm.storage) / calm.name)
    assert (measured.step, measured.metrics) == (6, expected.metrics)
    assert (run / "model" / "model.safetensors").is_file()


@pytest.mark.exhaustive
def test_sigterm_to_a_worker_and_a_deleted_file_stop_a_run_alike(
    make_run: Make, undisturbed: dict[str, torch.Tensor]
) -> None:
    config = make_run("worker")
    run = Path(config.storage) / config.name
    _after(run, 5, partial(_signal_a_worker, signal.SIGTERM))
    with pytest.raises(Stopped, match=rf"has a checkpoint of step \d+ of {STEPS}"):
        train(config)
    [first] = run.glob("checkpoint-*")
    _after(run, int(first.name.split("-")[1]) + 3, (run / UNTIL_STOPPED).unlink)
    with pytest.raises(Stopped):
        train(config)
    _require_goes_on(config, 2, undisturbed)


@pytest.mark.faults
def test_a_worker_that_waits_for_one_that_hangs_is_ended(
    make_run: Make, run_workers: Callable[..., list[Outcome | None]], undisturbed: dict[str, torch.Tensor]
) -> None:
    """SIGSTOP to one of two; started anew, they go on from the last checkpoint to the weights of undisturbed ones."""
    config = make_run("hangs", checkpoint_every=5, engine__timeout_s=20)
    run = Path(config.storage) / config.name
    _after(run, 7, partial(_signal_a_worker, signal.SIGSTOP))
    assert run_workers(config) == [None, None]
    assert "worker 0 is ended, to start anew from the last checkpoint: nothing has moved for 20 s" in _log(run)
    assert run_workers(config) == [Outcome()] * 2
    assert "resuming from" in _log(run)
    _require_equal(_weights(run), undisturbed)


@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_worker_that_hangs_is_ended_and_all_start_anew(make_run: Make, undisturbed: dict[str, torch.Tensor]) -> None:
    """SIGSTOP to a worker of Ray: the other waits in a collective, which has no end."""
    config = make_run("hung", checkpoint_every=5, engine__timeout_s=60)
    run = Path(config.storage) / config.name
    _after(run, 7, partial(_signal_a_worker, signal.SIGSTOP))
    train(config)
    assert "nothing has moved for 60 s" in _log(run)
    assert "resuming from" in _log(run)
    _require_equal(_weights(run), undisturbed)
