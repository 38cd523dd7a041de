"""SIGTERM to a sweep, without one: whose files go, and when Tune is interrupted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tuning import stopping
from tuning.blueprint import draw_up
from tuning.config import SweepConfig
from tuning.stopping import sigterm_stops_trials
from tuning.sweep import _stopped
from urg.training.notices import LISTENING, UNTIL_STOPPED


def test_the_files_of_runs_under_way_go_until_no_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run makes its file only after the signal, for it was about to train; for a moment none seems to be there."""
    monkeypatch.setattr(stopping, "INTERVAL_S", 0.05)
    runs, until = [tmp_path / name for name in "ab"], tmp_path / "tune" / "until"
    for run in runs:
        run.mkdir()
    (runs[0] / LISTENING).touch()
    (runs[0] / UNTIL_STOPPED).touch()
    asked: list[int] = []

    def stop() -> list[Path]:
        asked.append(1)
        if len(asked) == 3:
            (runs[1] / UNTIL_STOPPED).touch()
        return runs if len(asked) not in (2, 6) else []

    before = signal.getsignal(signal.SIGTERM)
    with sigterm_stops_trials(stop, until):
        assert until.exists()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while len(asked) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not until.exists()
    assert len(asked) >= 6
    assert not any((run / UNTIL_STOPPED).exists() for run in runs)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("listens", "patience"), [(True, 0.2), (False, 840.0)])
def test_trials_that_write_no_checkpoint_are_interrupted(
    listens: bool, patience: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once where none has a worker yet that could: they wait for nodes."""
    monkeypatch.setattr(stopping, "INTERVAL_S", 0.05)
    monkeypatch.setattr(stopping, "PATIENCE_S", patience)
    if listens:
        (tmp_path / LISTENING).touch()

    def tune() -> None:
        with sigterm_stops_trials(lambda: [tmp_path], tmp_path / "until"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    begun = time.monotonic()
    tune()
    assert time.monotonic() - begun < 15


def test_ctrl_c_is_nobody_elses(tmp_path: Path) -> None:
    def tune() -> None:
        with sigterm_stops_trials(list, tmp_path / "until"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        tune()
    assert not (tmp_path / "until").exists()


def test_the_trials_that_have_a_checkpoint_are_counted(make_sweep: Callable[..., SweepConfig]) -> None:
    """A trial of folds has one where any of its runs has."""
    blueprint = draw_up(make_sweep(folds=2))
    saved = blueprint.trials_folder / "trial-0001-fold-1" / "checkpoint-00000002-abcdef"
    saved.mkdir(parents=True)
    (saved / "manifest.json").touch()
    assert _stopped(blueprint, [0, 1, 2]).startswith("stopped: 1 of 3 trials under way have a checkpoint; ")
