"""What ending trials early saves, on sweeps that are played: no Ray, no training."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from tests.tuning.session import Session
from tuning.config import SchedulerConfig, SweepConfig
from tuning.cost import cost, points, study_of
from tuning.early_stopping import fate, measure, ratios, twins
from tuning.ledger import read_outcome

Make = Callable[..., SweepConfig]


def _play(config: SweepConfig) -> Path:
    """Stands for `tuning.sweep.sweep`."""
    session = Session(config, math.inf, [], Counter())
    session.play()
    return session.ledger.blueprint.folder


def test_the_twins_differ_in_nothing_but_who_ends_trials(make_sweep: Make, asha: SchedulerConfig) -> None:
    early, whole = twins(make_sweep(scheduler=asha, trials=9))
    assert (early.scheduler.kind, whole.scheduler.kind) == ("asha", "none")
    assert (early.scheduler.grace, early.name, whole.name) == (2, "tiny-asha", "tiny-whole")
    assert early.searcher == whole.searcher == "random"
    assert twins(make_sweep(searcher="grid"))[1].searcher == "grid"
    assert points(_play(early)) == points(_play(whole))  # whatever the scores were


def test_the_ratio_is_that_of_the_steps_and_the_best_of_both_is_named(
    make_sweep: Make, asha: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.sweep.sweep", _play)
    config = make_sweep(scheduler=asha, trials=9)
    sheet = measure(config)
    early, whole = (cost(Path(config.storage) / each.name) for each in twins(config))
    ended = [read_outcome(run) for run in sorted((Path(config.storage) / "tiny-asha" / "trials").iterdir())]
    assert whole.steps == 9 * 8
    assert early.steps == sum(outcome.step if outcome.state == "pruned" else 8 for outcome in ended if outcome)
    assert early.states["PRUNED"] >= 1
    stored = json.loads((Path(config.storage) / "tiny-early-stopping.json").read_text())
    assert stored["ratios"]["steps"] == early.steps / whole.steps < 1
    assert (early.best, early.value) == (whole.best, whole.value)
    assert sheet.notes == (f"Equal best result: both find trial {whole.best}, {whole.value:.4f}.",)
    assert sheet.groups[0].lines[2].cells[3] == f"{early.steps / whole.steps:.2f}"
    assert sheet.notes[0] in (Path(config.storage) / "tiny-early-stopping.md").read_text()


def test_a_best_trial_that_was_ended_early_is_no_equal_result(make_sweep: Make, asha: SchedulerConfig) -> None:
    early, whole = (_play(each) for each in twins(make_sweep(scheduler=asha, trials=9)))
    states = {trial.number: trial.state.name for trial in study_of(early).trials}
    number = next(number for number, state in states.items() if state == "PRUNED")
    of_all = cost(whole)
    told = fate(early, dataclasses.replace(of_all, best=number, value=0.9))
    assert told.startswith("Not an equal result: ASHA finds trial")
    assert f"best of all is trial {number}, 0.9000, ended by ASHA at step" in told


def test_other_points_and_nothing_trained_are_refused(
    make_sweep: Make, asha: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([2, 3])
    monkeypatch.setattr("tuning.sweep.sweep", lambda config: _play(make_sweep(name=config.name, trials=next(found))))
    with pytest.raises(UserError, match="have not tried the same points"):
        measure(make_sweep(scheduler=asha))
    impossible: list[dict[str, Any]] = [{"folds": 3}, {"objective": ["label", "ndcg"]}]
    for options in impossible:
        with pytest.raises(UserError, match="by one objective and without folds"):
            twins(make_sweep(**options))
    nothing = cost(_play(make_sweep(name="one", trials=1)))
    with pytest.raises(UserError, match="nothing was trained"):
        ratios(dataclasses.replace(nothing, steps=0), nothing)
