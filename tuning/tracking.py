"""The sweep in MLflow: a parent run, a child for each trial, and the best model in the registry.

A trial's child is the run that its training writes; the sweep adds what only it knows. All of it goes through
`urg.tracking`: nothing waits for the server, and what it could not take is kept and sent later.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.blueprint import PREPARE, Blueprint, Unit, trial_name
from tuning.ledger import Ledger, Outcome, earlier_outcomes, read_outcome
from tuning.mlflow_view import view_link, view_tag
from urg.tracking import OFF, Tracker, last_run
from urg.tracking.journal import is_held
from urg.tracking.mlflow_run import PARENT_TAG as PARENT

if TYPE_CHECKING:
    from urg.tracking.tracker import Status

CHAMPION = "champion"
SPOOL = "mlflow-spool"
SETTLED = "settled"
"""File in a trial's folder once MLflow has been told how the trial ended."""
_DEAD_WITHIN_S = 20.0
"""Seconds that the workers of a trial which was ended early may live on, and log: Tune kills their controller alone."""
_STATUS: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
_log = logging.getLogger(__name__)


class SweepTracking:
    """The parent run, open while the sweep is. Its calls return at once; one thread closes the trials' runs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._blueprint = ledger, ledger.blueprint
        blueprint, config, spool = self._blueprint, self._blueprint.config, self._blueprint.folder / SPOOL
        self._parent = Tracker(
            blueprint.tracking_uri,
            blueprint.experiment,
            config.name,
            last_run(spool),
            spool=spool,
            tags={"sweep": config.name, "kind": "sweep", "objective": ", ".join(config.objective)},
            system_interval=None,
        )
        settings = {key: getattr(config, key) for key in ("searcher", "base", "folds", "seed")}
        self._parent.log_params(
            {**settings, "trials": blueprint.trials, "scheduler": config.scheduler, "space": dict(config.space)}
        )
        self._pool = ThreadPoolExecutor(1, "settle")
        self._logged: set[tuple[str, int]] = set()
        self._away = False
        self._view: str | None = None
        if self.active:
            self._pool.submit(self._save_view)

    @property
    def active(self) -> bool:
        """Whether runs are tracked at all."""
        return self._blueprint.tracking_uri != OFF

    @property
    def view(self) -> str | None:
        """Where MLflow's UI shows the sweep's trials; None where it was not reached."""
        return self._view

    def tags(self, unit: Unit) -> dict[str, str]:
        """Tags that a run of the sweep starts with. May wait for the server where a fold's parent is not known yet."""
        parent = self._trial_run(unit.number) if unit.fold is not None else self._parent.run_id
        tags = {"sweep": self._blueprint.config.name, "kind": "trial", "trial": str(unit.number)}
        tags |= {"kind": "fold", "fold": str(unit.fold)} if unit.fold is not None else {}
        return tags | ({PARENT: parent} if parent and not parent.startswith("pending") else {})

    def settle(self, number: int, outcome: Outcome) -> None:
        """Say in MLflow how a trial ended, when the thread comes to it."""
        if self.active:
            self._pool.submit(self._settle, number, outcome)

    def settle_left(self) -> None:
        """The trials whose end MLflow may not know: a kill, or a server that was away, came in between."""
        for trial in self._ledger.ended():
            folders = [self._run(unit) for unit in self._blueprint.units(trial.number)] + [self._folder(trial.number)]
            unsent = any(any((folder / SPOOL).glob("*.jsonl")) for folder in folders)
            outcome = self._ledger.tell(trial.number)
            if outcome and (unsent or not (self._folder(trial.number) / SETTLED).exists()):
                self.settle(trial.number, outcome)

    def wait(self) -> None:
        """Wait until the thread has closed the runs of all trials that have ended."""
        self._pool.submit(lambda: None).result()

    def log_history(self) -> None:
        """Each trial's objectives at its number, and the best so far by the count of trials that have finished."""
        finished = [trial for trial in self._ledger.ended() if trial.state.name == "COMPLETE"]
        finished.sort(key=lambda trial: (trial.datetime_complete, trial.number))
        for index, name in enumerate(self._blueprint.config.objective):
            bests = itertools.accumulate((trial.values[index] for trial in finished), max)
            for count, (trial, best) in enumerate(zip(finished, bests, strict=True), 1):
                if (name, count) not in self._logged:
                    self._logged.add((name, count))
                    self._parent.log_metrics({f"trials/{name}": trial.values[index]}, trial.number)
                    self._parent.log_metrics({f"best/{name}": best}, count)

    def close(self, files: list[Path], tags: Mapping[str, str], interrupted: bool = False) -> None:
        """Wait for the thread, end the parent run, and tell of trials what could not be told before."""
        self.wait()
        if not interrupted:
            self.log_history()
        for file in files:
            self._parent.log_artifact(file)
        self._parent.set_tags(tags)
        if self._parent.close("KILLED" if interrupted else "FINISHED", timeout=30):
            self.settle_left()
        self._pool.shutdown(wait=True)

    def register(self, run: Path, number: int, values: Mapping[str, float]) -> str | None:
        """Put the model that a run published into the registry, as `champion` where it is better than the one that is
        there, of another sweep or of this one; what is there now, or None.

        A registry that is away or that the store does not have is a warning: the model is in the sweep's folder too.
        """
        from urg.tracking.mlflow_run import register_model

        config = self._blueprint.config
        run_id = last_run(run / SPOOL)
        if not self.active or run_id is None or run_id.startswith("pending"):
            return None
        name = config.register or config.name
        tags = {"sweep": config.name, "trial": str(number)} | {key: f"{value:.6g}" for key, value in values.items()}
        try:
            uri, metric = self._blueprint.tracking_uri, config.objective[0]
            version, kept = register_model(uri, run_id, run / "model", name, CHAMPION, tags, metric)
        except Exception as error:
            _log.warning("the best model was not registered (%s); run the same command again.", _one_line(error))
            return None
        if kept:
            return f"models:/{name}/{version}; the {CHAMPION} stays: {kept}"
        return f"models:/{name}@{CHAMPION} (version {version})"

    def _save_view(self) -> None:
        from urg.tracking.mlflow_run import tag_experiment

        try:
            uri, experiment = self._blueprint.tracking_uri, self._blueprint.experiment
            experiment_id = tag_experiment(uri, experiment, view_tag(self._blueprint))
            self._view = view_link(self._blueprint, experiment_id)
        except Exception as error:  # a sweep does not end for its tracking
            _log.warning("the sweep's view was not saved in MLflow (%s).", _one_line(error))

    def _settle(self, number: int, outcome: Outcome) -> None:
        try:
            for unit in self._blueprint.units(number):
                _await_end(self._run(unit) / SPOOL)
            for unit in self._blueprint.units(number) if self._blueprint.config.folds else []:
                self._close_fold(unit)
            self._close_trial(number, outcome)
        except Exception as error:  # a sweep does not end for its tracking
            _log.warning("%s could not be told to MLflow (%s).", trial_name(number), _one_line(error))

    def _close_fold(self, unit: Unit) -> None:
        outcome = read_outcome(self._run(unit))
        if outcome is not None:
            with self._tracker(self._run(unit), unit.name) as tracker:
                tracker.set_tags({**self.tags(unit), **self._outcome_tags(outcome, self._run(unit))})
                _log_objectives(tracker, self._blueprint, outcome)
                self._end(tracker, outcome)

    def _close_trial(self, number: int, outcome: Outcome) -> None:
        """The trial's run gets its end. With folds it holds nothing but their mean and spread."""
        folder = self._folder(number)
        untrained = last_run(folder / SPOOL) is None
        tags = self.tags(Unit(number))
        with self._tracker(folder, trial_name(number)) as tracker:
            tracker.set_tags(tags | self._outcome_tags(outcome, folder))
            values = self._ledger.values(number)
            tracker.log_params({key: values[key] for key in values if untrained or key.startswith(PREPARE)})
            _log_objectives(tracker, self._blueprint, outcome)
            if self._blueprint.config.folds and outcome.state == "finished":
                tracker.log_metrics(self._spread(number), outcome.step)
            if self._end(tracker, outcome) and PARENT in tags:  # without it the trial stands beside the sweep
                (folder / SETTLED).touch()

    def _outcome_tags(self, outcome: Outcome, folder: Path) -> dict[str, str]:
        """How a run ended, and where what it has left stands; checkpoints where they are kept."""
        tags = {"trial.state": outcome.state, "trial.folder": str(folder), "trial.seconds": f"{outcome.seconds:.0f}"}
        tags |= {"model.folder": str(folder / "model")} if (folder / "model").is_dir() else {}
        kept = sorted(folder.glob("checkpoint-*")) if self._blueprint.config.keep_checkpoints else []
        tags |= {"checkpoint.folder": str(kept[-1])} if kept else {}
        runs = [folder, *folder.parent.glob(f"{folder.name}-fold-*")]
        attempts = sum(map(earlier_outcomes, runs))  # the reason of the last stands in MLflow, and must not stay
        reason = outcome.reason or (f"finished after {attempts} failed" if attempts else "")
        return tags | ({"trial.reason": reason} if reason else {})

    def _end(self, tracker: Tracker, outcome: Outcome) -> bool:
        """End a run; whether the server has all of it. A server that is away is not waited for again and again."""
        self._away = not tracker.close(_STATUS[outcome.state], timeout=1 if self._away else 20)
        return not self._away

    def _spread(self, number: int) -> dict[str, float]:
        outcomes = [read_outcome(self._run(unit)) for unit in self._blueprint.units(number)]
        columns = zip(*(outcome.values for outcome in outcomes if outcome), strict=True)
        names = self._blueprint.config.objective
        return {f"spread/{name}": statistics.stdev(column) for name, column in zip(names, columns, strict=True)}

    def _trial_run(self, number: int) -> str:
        """The id of a folded trial's own run; made where there is none yet."""
        folder = self._folder(number)
        if not self.active:
            return ""
        known = last_run(folder / SPOOL)
        if known and not known.startswith("pending"):
            return known
        with self._tracker(folder, trial_name(number)) as tracker:
            tracker.set_tags(self.tags(Unit(number)))
            tracker.log_params(self._blueprint.train_config(self._ledger.values(number), Unit(number, 0)))
            tracker.close("FINISHED", timeout=1 if self._away else 10)
        return tracker.run_id

    def _tracker(self, folder: Path, name: str) -> Tracker:
        uri, experiment, spool = self._blueprint.tracking_uri, self._blueprint.experiment, folder / SPOOL
        wait = 1.0 if self._away else 10.0
        return Tracker(uri, experiment, name, last_run(spool), spool=spool, connect_timeout=wait, system_interval=None)

    def _folder(self, number: int) -> Path:
        return self._blueprint.trials_folder / trial_name(number)

    def _run(self, unit: Unit) -> Path:
        return self._blueprint.trials_folder / unit.name


def _await_end(spool: Path) -> None:
    """Wait until nobody logs to a run any more, for a while: what comes later is sent when the sweep is resumed."""
    deadline = time.monotonic() + _DEAD_WITHIN_S
    while is_held(spool) and time.monotonic() < deadline:
        time.sleep(0.2)


def _log_objectives(tracker: Tracker, blueprint: Blueprint, outcome: Outcome) -> None:
    """`objective/<metric>` at the step that counts, for the compare view and parallel coordinates."""
    values = zip(blueprint.config.objective, outcome.values, strict=False)
    tracker.log_metrics({f"objective/{name}": value for name, value in values}, outcome.step)
    if outcome.values:
        tracker.log_metrics({"trial/seconds": outcome.seconds}, outcome.step)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
