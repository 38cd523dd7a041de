"""The one durable account of a sweep's trials: Optuna's study in SQLite, and an outcome file in each run's folder.

A trial is, in this order: asked for (RUNNING in the study) → run, its outcome written by whoever ends it, whole or not
at all → told to the study. Killed between any two of these, the next session picks it up there: a RUNNING trial without
outcome is run again under its number, where its training continues from its own checkpoint; one with an outcome is
told. So no finished trial runs twice, and none is lost.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_pipeline.errors import UserError
from tuning.blueprint import Blueprint, first_rung
from tuning.space import Point

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STUDY = "study.db"
OUTCOME = "outcome.json"
GIVEN_UP = "given_up"
"""Attribute of a trial in the study: the step at which it is to be ended."""
EARLIER = "outcome-{}.json"
"""Where the outcome of a failed attempt goes, by its number from 1 on, when the run is tried again."""
State = Literal["finished", "failed", "pruned"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: State
    values: list[float] = field(default_factory=list)
    """One for each objective, of the evaluation that counts; empty where it failed."""
    step: int = 0
    """Steps at that evaluation."""
    reason: str = ""
    """Why it failed, in one line, or where it was ended early."""
    seconds: float = 0.0
    """What it took, over all sessions."""

    def write(self, run: Path) -> None:
        """Write it into the run's folder, unless there is one: the first holds."""
        from urg.training.checkpoints import write_json

        run.mkdir(parents=True, exist_ok=True)
        if not (run / OUTCOME).exists():
            write_json(run / OUTCOME, dataclasses.asdict(self))


def read_outcome(run: Path) -> Outcome | None:
    """The outcome of a run; None where it has not ended."""
    try:
        return Outcome(**json.loads((run / OUTCOME).read_text()))
    except FileNotFoundError:
        return None


def earlier_outcomes(run: Path) -> int:
    """How many failed attempts of a run were set aside before the one that counts."""
    return len(list(run.glob(EARLIER.format("*"))))


def together(outcomes: Iterable[Outcome]) -> tuple[Outcome, list[float]]:
    """One outcome for the folds of a trial, with mean values, and the spread (sample standard deviation) of each.

    Failed where any of them failed.
    """
    parts = list(outcomes)
    seconds = sum(part.seconds for part in parts)
    broken = next((part for part in parts if part.state != "finished"), None)
    if broken is not None:
        return dataclasses.replace(broken, values=broken.values if len(parts) == 1 else [], seconds=seconds), []
    columns = list(zip(*(part.values for part in parts), strict=True))
    spread = [statistics.stdev(column) for column in columns] if len(parts) > 1 else []
    step = max(part.step for part in parts)
    return Outcome("finished", [statistics.mean(column) for column in columns], step, "", seconds), spread


class Ledger:
    """The study of a sweep. One process at a time writes it."""

    def __init__(self, blueprint: Blueprint, study: Study) -> None:
        self.blueprint, self.study = blueprint, study

    @classmethod
    def open(cls, blueprint: Blueprint, steps: int) -> Ledger:
        """Open or make the study. steps: of a trial, for ASHA's rungs. Raises UserError where it cannot be written."""
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path, config = blueprint.folder / STUDY, blueprint.config
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{path}",
                study_name=config.name,
                directions=["maximize"] * len(config.objective),
                sampler=_sampler(blueprint, 0),
                pruner=_pruner(blueprint, steps),
                load_if_exists=True,
            )
            ledger = cls(blueprint, study)
            ledger._enqueue()
        except SQLAlchemyError as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise UserError(f"the study {path} cannot be written ({reason}): choose another --storage.") from error
        return ledger

    def begun(self) -> int:
        """Trials that have begun, ended ones included."""
        return sum(trial.state.name != "WAITING" for trial in self.study.get_trials(deepcopy=False))

    def interrupted(self) -> list[int]:
        """Trials that have begun and not ended."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]

    def waiting(self) -> bool:
        """Whether points stand in the queue."""
        return any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False))

    def ask(self) -> int:
        """Begin a new trial; its number."""
        return int(self.study.ask().number)

    def point(self, number: int) -> Point:
        """The values of a trial: those that it has, and, where a kill came in between, the missing ones."""
        import optuna

        # A sampler for each trial, so that a session does not repeat the random draws of the one before it.
        self.study.sampler = _sampler(self.blueprint, number)
        trial = optuna.Trial(self.study, self._frozen(number)._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CMA-ES says for each conditional parameter that it draws it at random
            return self.blueprint.space.suggest(trial)

    def values(self, number: int) -> Point:
        """The values of a trial by key of the configuration, as far as it has them."""
        keys = {dimension.name: dimension.key for dimension in self.blueprint.space.dimensions}
        return {keys[name]: value for name, value in self._frozen(number).params.items()}

    def report(self, number: int, step: int, value: float) -> bool:
        """Record an intermediate value; whether the trial should end here. A step is recorded once, and is answered
        alike where a kill has come before the outcome was written: the pruner itself gives each rung one answer."""
        import optuna

        frozen = self._frozen(number)
        if frozen.state.is_finished() or not math.isfinite(value):
            return False
        trial = optuna.Trial(self.study, frozen._trial_id)
        if step in frozen.intermediate_values:
            newest = step == max(frozen.intermediate_values)
            return newest and (frozen.user_attrs.get(GIVEN_UP) == step or trial.should_prune())
        trial.report(value, step)
        if given_up := trial.should_prune():
            trial.set_user_attr(GIVEN_UP, step)
        return given_up

    def tell(self, number: int) -> Outcome | None:
        """Close a trial whose runs all have an outcome, and say which; None where one of them has not."""
        import optuna
        from optuna.trial import TrialState

        outcomes = [read_outcome(self.blueprint.trials_folder / unit.name) for unit in self.blueprint.units(number)]
        known = [outcome for outcome in outcomes if outcome is not None]
        if len(known) < len(outcomes):
            return None
        outcome, spread = together(known)
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return outcome
        trial = optuna.Trial(self.study, frozen._trial_id)
        for key, value in (dataclasses.asdict(outcome) | {"spread": spread}).items():
            trial.set_user_attr(key, value)
        if outcome.state == "finished":
            self.study.tell(number, outcome.values)
        else:
            pruned = outcome.state == "pruned" and bool(frozen.intermediate_values)
            self.study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        return outcome

    def ended(self) -> list[FrozenTrial]:
        """The trials that have ended, by number."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def best(self) -> FrozenTrial | None:
        """The best finished trial by the first objective; None without one."""
        from optuna.trial import TrialState

        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(finished, key=lambda trial: (trial.values[0], -trial.number), default=None)

    def hours(self) -> float:
        """Hours of sweeping so far, over all sessions."""
        return float(self.study.user_attrs.get("seconds", 0.0)) / 3600

    def add_seconds(self, seconds: float) -> None:
        """Count time of sweeping."""
        self.study.set_user_attr("seconds", self.study.user_attrs.get("seconds", 0.0) + seconds)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _enqueue(self) -> None:
        """Put the base's point first, and for a grid all others; once, also where a kill came in between."""
        for point in self.blueprint.queue:
            self.study.enqueue_trial(point, skip_if_exists=True)


def _sampler(blueprint: Blueprint, number: int) -> BaseSampler:
    """What draws the point of a trial; seeded by the sweep's seed and the trial's number."""
    import numpy as np
    from optuna import samplers

    kind = blueprint.config.searcher
    seed = int(np.random.SeedSequence([blueprint.config.seed, number]).generate_state(1)[0])
    if kind == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate and group are marked experimental
            return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=8)
    if kind == "cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)  # a grid's points all stand in the queue


def _pruner(blueprint: Blueprint, steps: int) -> BasePruner:
    """ASHA as Optuna has it: its rungs lie in the study, and so outlive a kill; Tune's lie in memory."""
    from optuna import pruners

    scheduler = blueprint.config.scheduler
    if scheduler.kind == "none":
        return pruners.NopPruner()
    grace = first_rung(blueprint, steps)
    return pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=scheduler.reduction)
