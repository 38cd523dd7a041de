"""A trial goes on where a worker of it was told to end, as before a spot instance is taken away; why one failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from tuning.blueprint import Unit, draw_up
from tuning.config import SweepConfig
from tuning.ledger import read_outcome
from tuning.trial import _run, _train, reason_of, run_unit
from urg.config import TrainConfig
from urg.training.evaluations import record_evaluation
from urg.training.notices import UNTIL_STOPPED
from urg.training.state import Stopped


def test_a_trial_whose_run_was_told_to_stop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def train(config: object, tags: object) -> None:
        calls.append((config, tags))
        if len(calls) < 3:
            raise Stopped("stopped: run x has a checkpoint; the same command resumes it.")

    monkeypatch.setattr("urg.train.train", train)
    (tmp_path / UNTIL_STOPPED).touch()
    _train("config", tmp_path, {"trial": "1"})
    assert calls == [("config", {"trial": "1"})] * 3


@pytest.mark.parametrize(("folds", "value", "step"), [(None, 0.5, 2), (3, 0.4, 3)])
def test_a_fold_counts_by_its_last_evaluation_and_a_trial_by_its_best(
    folds: int | None, value: float, step: int, make_sweep: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fold's evaluations measure is the part that is held out: the best of them would be chosen by it."""
    blueprint = draw_up(make_sweep(folds=folds))

    def train(config: TrainConfig, run: Path, tags: object, until: object) -> None:
        for at, label in enumerate((0.3, 0.5, 0.4), 1):
            record_evaluation(run, at, {"label": label})

    monkeypatch.setattr("tuning.trial._train", train)
    monkeypatch.setattr("tuning.trial._watch", lambda run, objective, training: training.result())
    monkeypatch.setattr("tuning.trial._wait_for_nodes", lambda: None)
    monkeypatch.setattr("tuning.trial._hand_over", lambda outcome: None)
    settings: dict[str, Any] = {
        "number": 0,
        "fold": blueprint.units(0)[0].fold,
        "point": {},
        "tags": {},
        "shards": None,
    }
    run_unit(settings, blueprint)
    outcome = read_outcome(blueprint.trials_folder / blueprint.units(0)[0].name)
    assert outcome is not None
    assert (outcome.state, outcome.values, outcome.step) == ("finished", [value], step)


def test_a_trial_of_a_sweep_that_was_told_to_stop_stays_open(
    make_sweep: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it knows by the file that the workers heard it by."""
    calls: list[object] = []

    def train(config: object, tags: object) -> None:
        calls.append(config)
        raise Stopped("stopped: run x has a checkpoint; the same command resumes it.")

    monkeypatch.setattr("urg.train.train", train)
    assert _run({"point": {}, "shards": None, "tags": {}}, draw_up(make_sweep()), Unit(0)) is None
    assert len(calls) == 1


def test_nothing_begins_to_train_in_a_sweep_that_was_told_to_stop(
    make_sweep: Callable[..., SweepConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trial does whose process starts after the signal: no worker would be there to hear of it."""
    calls: list[object] = []
    monkeypatch.setattr("urg.train.train", lambda config, tags: calls.append(config))
    until = tmp_path / "until"
    settings: dict[str, Any] = {"point": {}, "shards": None, "tags": {}}
    assert _run(settings, draw_up(make_sweep()), Unit(0), until) is None
    assert calls == []
    until.touch()
    assert _run(settings, draw_up(make_sweep()), Unit(0), until) is not None
    assert len(calls) == 1


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_is_lost_as_it_starts_leaves_the_trial_to_tunes_next_actor(
    stopped: bool, make_sweep: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune counts it as a lost process of its own: no outcome, no result. Told to stop, the trial stays open."""
    from ray.exceptions import ActorDiedError
    from ray.train import ControllerError

    blueprint, told = draw_up(make_sweep()), list[object]()
    run = blueprint.trials_folder / "trial-0000"

    def train(config: object, tags: object) -> None:
        (run / UNTIL_STOPPED).touch()
        if stopped:
            (run / UNTIL_STOPPED).unlink()
        raise ControllerError(ActorDiedError())

    monkeypatch.setattr("urg.train.train", train)
    monkeypatch.setattr("tuning.trial._wait_for_nodes", lambda: None)
    monkeypatch.setattr("tuning.trial._hand_over", told.append)
    settings: dict[str, Any] = {"number": 0, "fold": None, "point": {}, "tags": {}, "shards": None}
    with nullcontext() if stopped else pytest.raises(ControllerError):
        run_unit(settings, blueprint)
    assert read_outcome(run) is None
    assert told == ([None] if stopped else [])


def test_a_bug_in_rays_controller_fails_the_trial(
    make_sweep: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import ControllerError

    def train(config: object, tags: object) -> None:
        raise ControllerError(ValueError("a bug"))

    monkeypatch.setattr("urg.train.train", train)
    outcome = _run({"point": {}, "shards": None, "tags": {}}, draw_up(make_sweep()), Unit(0))
    assert outcome is not None
    assert outcome.state == "failed"


def test_an_evaluation_that_another_node_has_written_is_waited_for(
    make_sweep: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not there when the training has ended, as a network file system may say for some seconds."""
    blueprint = draw_up(make_sweep())
    run = blueprint.trials_folder / "trial-0000"
    late = threading.Timer(1.0, record_evaluation, (run, 4, {"label": 0.5}))
    monkeypatch.setattr("urg.train.train", lambda config, tags: late.start())
    outcome = _run({"point": {}, "shards": None, "tags": {}}, blueprint, Unit(0))
    assert outcome is not None
    assert (outcome.state, outcome.values, outcome.step) == ("finished", [0.5], 4)


@pytest.mark.parametrize("address", [None, "", "local"])
def test_a_trial_waits_for_nodes_that_a_cluster_has_yet_to_add(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where urg.train is told by RAY_ADDRESS alone that a cluster may grow, which no process but the driver has."""
    import ray

    from tuning.trial import _wait_for_nodes
    from urg.config import EngineConfig, EvalConfig, TrainConfig
    from urg.train import _require_resources

    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.delenv("RAY_ADDRESS")  # and taken back after the test
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    config = TrainConfig(eval=EvalConfig(metric="rougeL"), engine=EngineConfig(workers=8, use_gpu=True))
    with pytest.raises(UserError, match="8 workers need"):
        _require_resources(config)
    _wait_for_nodes()
    _require_resources(config)


REFUSED = 2**50
"""Bytes that no process can address: every allocator refuses so many at once, on any machine, and takes nothing."""


@pytest.mark.parametrize("of_a_worker", [False, True])
@pytest.mark.parametrize(
    "allocate",
    [lambda: bytearray(REFUSED), lambda: np.empty(REFUSED), lambda: torch.empty(REFUSED)],
    ids=["python", "numpy", "torch"],
)
def test_memory_that_is_refused_is_the_reason(allocate: Callable[[], object], of_a_worker: bool) -> None:
    """Whoever refuses it: Python says nothing but the error's name, NumPy does not say `memory`, torch's is no
    MemoryError. Of a worker Ray Train hands on the error as it was raised, and the others' that have lost it."""
    from ray.train import WorkerGroupError

    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    error = WorkerGroupError("a worker failed", {0: LOST, 1: caught.value}) if of_a_worker else caught.value
    reason = reason_of(error)
    assert reason.startswith("out of memory: ")
    assert "Connection closed" not in reason
    assert "\n" not in reason


LOST = RuntimeError("Connection closed by peer [127.0.0.1]:1234")
# As Ray 2.60 says it, shortened within its lines.
BY_RAY = """3 worker(s) were killed due to the node running low on memory. Memory on the node was 6.49GB used
OOM kill reason: Memory usage 7893377024B exceeded threshold of 7624360448B
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io. To disable …"""
GONE = """A worker health check failed.
The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit detail: End of file. Some common causes include: \
(1) the process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the \
worker crashed unexpectedly due to SIGSEGV. If the process was killed by the kernel OOM killer, consider …"""
UNEXPLAINED = "End of file. Killed, perhaps by the system for want of memory, or crashed."


def test_a_kill_by_rays_memory_monitor_is_told_in_its_first_line() -> None:
    """Which Ray raises where it killed Train's controller, and of a worker where it killed that."""
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError

    reason = "out of memory: 3 worker(s) were killed due to the node running low on memory. Memory on the node was 6.49"
    for error in (OutOfMemoryError(BY_RAY), WorkerGroupError("", {0: LOST, 1: OutOfMemoryError(BY_RAY)})):
        assert reason_of(error).startswith(reason)


def test_a_worker_that_is_gone_is_not_said_to_have_lacked_memory() -> None:
    from ray.train import WorkerGroupError

    failures: dict[int, Exception] = {0: LOST, 1: RuntimeError(GONE)}
    reason = reason_of(WorkerGroupError("a worker failed", failures))
    assert reason.startswith("The actor is dead because its worker process has died.")
    assert reason.endswith(UNEXPLAINED)


def test_where_no_worker_is_gone_the_first_says_why() -> None:
    from ray.train import WorkerGroupError

    failures: dict[int, Exception] = {0: ValueError(), 1: LOST}
    assert reason_of(WorkerGroupError("a worker failed", failures)) == "ValueError"
