"""SIGTERM to a sweep, without one: whose files go, and when Tune is interrupted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tuning import stopping
from tuning.stopping import sigterm_stops_trials
from urg.training.notices import UNTIL_STOPPED


def test_the_files_of_runs_under_way_go_until_no_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run makes its file only after the signal, for it was about to train."""
    monkeypatch.setattr(stopping, "INTERVAL_S", 0.05)
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        run.mkdir()
    (runs[0] / UNTIL_STOPPED).touch()
    asked: list[int] = []

    def stop() -> list[Path]:
        asked.append(1)
        if len(asked) == 3:
            (runs[1] / UNTIL_STOPPED).touch()
        return runs if len(asked) < 6 else []

    before = signal.getsignal(signal.SIGTERM)
    with sigterm_stops_trials(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while len(asked) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(asked) == 6
    assert not any((run / UNTIL_STOPPED).exists() for run in runs)
    assert signal.getsignal(signal.SIGTERM) is before


def test_trials_that_write_no_checkpoint_are_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "INTERVAL_S", 0.05)
    monkeypatch.setattr(stopping, "PATIENCE_S", 0.2)

    def tune() -> None:
        with sigterm_stops_trials(lambda: [tmp_path]):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        tune()
