"""A trial goes on where a worker of it was told to end, as before a spot instance is taken away; why one failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tuning.trial import _train, reason_of
from urg.training.state import Stopped


def test_a_trial_whose_run_was_told_to_stop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def train(config: object, tags: object) -> None:
        calls.append((config, tags))
        if len(calls) < 3:
            raise Stopped("stopped: run x has a checkpoint; the same command resumes it.")

    monkeypatch.setattr("urg.train.train", train)
    _train("config", tmp_path, {"trial": "1"})
    assert calls == [("config", {"trial": "1"})] * 3


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
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    error = WorkerGroupError("a worker failed", {0: lost, 1: caught.value}) if of_a_worker else caught.value
    reason = reason_of(error)
    assert reason.startswith("out of memory: ")
    assert "Connection closed" not in reason
    assert "\n" not in reason


def test_where_no_worker_lacked_memory_the_first_says_why() -> None:
    from ray.train import WorkerGroupError

    failures: dict[int, Exception] = {0: ValueError(), 1: RuntimeError("Connection closed by peer")}
    assert reason_of(WorkerGroupError("a worker failed", failures)) == "ValueError"
