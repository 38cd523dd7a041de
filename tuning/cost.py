"""What a sweep took and what it found, read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.blueprint import trial_name
from tuning.ledger import STUDY, read_outcome
from urg.training.evaluations import read_evaluations


@dataclass(frozen=True)
class Cost:
    """A sweep's account."""

    states: dict[str, int]
    """How many trials ended in each of Optuna's states."""
    steps: int
    """Optimizer steps of all runs, each up to its last evaluation."""
    trial_seconds: float
    """Seconds of all trials, added up, their starts included."""
    seconds: float
    """Seconds of sweeping, over all sessions."""
    best: int | None
    """The finished trial with the highest first objective; None without one."""
    value: float | None
    """That objective."""

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.states.items())
        found = f"; best: trial {self.best}, {self.value:.4f}" if self.value is not None else ""
        return f"{counts}: {self.steps} steps in {self.trial_seconds / 60:.1f} minutes of trials{found}"


def study_of(folder: Path) -> Any:
    """Optuna's study of the sweep in a folder."""
    import optuna

    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / STUDY}")


def cost(folder: Path) -> Cost:
    """The account of the sweep in a folder."""
    study = study_of(folder)
    trials = study.get_trials(deepcopy=False)
    runs = [run for trial in trials for run in sorted((folder / "trials").glob(f"{trial_name(trial.number)}*"))]
    steps = sum(max((evaluation.step for evaluation in read_evaluations(run)), default=0) for run in runs)
    outcomes = [outcome for run in runs if (outcome := read_outcome(run)) is not None]
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    best = max(finished, key=lambda trial: (trial.values[0], -trial.number), default=None)
    states = [trial.state.name for trial in trials]
    return Cost(
        {state: states.count(state) for state in sorted(set(states))},
        steps,
        sum(outcome.seconds for outcome in outcomes),
        float(study.user_attrs.get("seconds", 0.0)),
        None if best is None else best.number,
        None if best is None else float(best.values[0]),
    )


def points(folder: Path) -> list[dict[str, Any]]:
    """The point of each trial, by number."""
    return [trial.params for trial in study_of(folder).get_trials(deepcopy=False)]
