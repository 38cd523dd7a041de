"""A trial goes on where a worker of it was told to end, as before a spot instance is taken away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning.trial import _train
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
