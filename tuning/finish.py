"""What a finished sweep leaves: the best configuration and model, the registry's champion, the report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.blueprint import LENGTH
from tuning.data import prepared
from tuning.ledger import read_outcome
from tuning.values import value_of
from urg.train import settings_of
from urg.training import checkpoints

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuning.blueprint import Blueprint
    from tuning.ledger import Ledger
    from tuning.tracking import SweepTracking
    from urg.config import TrainConfig

BEST, BEST_TRIAL = "best.yaml", "best-trial.yaml"
"""The full training with the best point, and the trial that found it."""


def finish(ledger: Ledger, tracking: SweepTracking) -> None:
    """Write best.yaml, best-trial.yaml, best/ and the report, end the runs in MLflow and register the best model. May
    be repeated."""
    from tuning.report import write_report

    folder, best = ledger.blueprint.folder, ledger.best()
    tracking.wait()
    tags: dict[str, str] = {}
    if failed := sum(trial.state.name == "FAIL" for trial in ledger.ended()):
        print(
            f"failed: {failed} of {len(ledger.ended())} trials; the same command with --retry_failed true tries them."
        )
    if best is None:
        print("no trial has finished: see the reasons in the report.")
    else:
        tags = _keep_best(ledger, tracking, best)
    for trial in ledger.ended():
        drop_checkpoints(ledger.blueprint, trial.number)
    files = write_report(ledger)
    tags["mlflow.note.content"] = (folder / "report.md").read_text(encoding="utf-8")
    tracking.close([*files, *([folder / name for name in (BEST, BEST_TRIAL)] if best else [])], tags)
    if tracking.view:
        print(f"trials: {tracking.view}")


def drop_checkpoints(blueprint: Blueprint, number: int) -> None:
    """Delete what an ended trial could go on from, unless it has failed or `keep_checkpoints` is set; its best model
    stays."""
    if blueprint.config.keep_checkpoints:
        return
    for run in (blueprint.trials_folder / unit.name for unit in blueprint.units(number)):
        outcome = read_outcome(run)
        if outcome is not None and outcome.state == "failed":
            continue
        for folder in run.glob(f"{checkpoints.PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _keep_best(ledger: Ledger, tracking: SweepTracking, best: FrozenTrial) -> dict[str, str]:
    """The configurations, the model, the registry; tags that name them."""
    blueprint, folder = ledger.blueprint, ledger.blueprint.folder
    values = dict(zip(blueprint.config.objective, best.values, strict=True))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    (folder / BEST).write_text(best_yaml(ledger, best), encoding="utf-8")
    (folder / BEST_TRIAL).write_text(best_trial_yaml(ledger, best), encoding="utf-8")
    print(f"best: trial {best.number}, {shown}: {folder / BEST_TRIAL}")
    tags = {"best.trial": str(best.number)} | {f"best.{name}": f"{value:.6g}" for name, value in values.items()}
    run = blueprint.trials_folder / blueprint.units(best.number)[0].name
    if blueprint.config.folds:
        print("no model is exported or registered: each fold's has seen a part of the data only. best.yaml trains one.")
    if blueprint.config.folds or not (run / "model").is_dir():
        return tags
    checkpoints.publish(run / "model", folder / "best")
    registered = tracking.register(run, best.number, values)
    if registered:
        print(f"registered: {registered}")
    return tags | ({"best.model": registered} if registered else {})


def best_yaml(ledger: Ledger, best: FrozenTrial) -> str:
    """The full training with a trial's point, for `python -m urg.train --config`; no cross-validation."""
    blueprint = ledger.blueprint
    point = ledger.values(best.number)
    note = ""
    if blueprint.shortened:
        lengths = ", ".join(f"{key} {value_of(blueprint.base, key)}" for key in LENGTH)
        note = f"# Its length is the base's own: the trial's, {lengths}, stands in {BEST_TRIAL}.\n"
    return _noted(ledger, best, note, blueprint.full_config(point, prepared(blueprint, point)))


def best_trial_yaml(ledger: Ledger, best: FrozenTrial) -> str:
    """The configuration of a trial as it was trained, but for name, folder and cross-validation."""
    blueprint, point = ledger.blueprint, ledger.values(best.number)
    config = blueprint.train_config(point, blueprint.units(best.number)[0], prepared(blueprint, point))
    again = dataclasses.replace(
        config,
        name=f"{blueprint.config.name}-best-trial",
        storage=str(Path(blueprint.config.storage)),
        data=dataclasses.replace(config.data, folds=None, fold=None, fold_dev="training"),
    )
    return _noted(ledger, best, "", again)


def _noted(ledger: Ledger, best: FrozenTrial, note: str, config: TrainConfig) -> str:
    import yaml

    sweep = ledger.blueprint.config
    names = ", ".join(f"{name} {value:.4f}" for name, value in zip(sweep.objective, best.values, strict=True))
    head = f"# Trial {best.number} of the sweep {sweep.name}: {names} on the dev split.\n{note}"
    return head + yaml.safe_dump(settings_of(config), sort_keys=False, allow_unicode=True)
