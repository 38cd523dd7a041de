"""What a finished sweep leaves: the best configuration and model, the registry's champion, the report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.ledger import read_outcome
from urg.training import checkpoints

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuning.blueprint import Blueprint
    from tuning.ledger import Ledger
    from tuning.tracking import SweepTracking
    from urg.config import TrainConfig


def finish(ledger: Ledger, tracking: SweepTracking) -> None:
    """Write best.yaml, best/ and the report, end the runs in MLflow and register the best model. May be repeated."""
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
    tracking.settle_left()
    tracking.close([*files, *([folder / "best.yaml"] if best else [])], tags)
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
    """best.yaml, the model, the registry; tags that name them."""
    blueprint, folder = ledger.blueprint, ledger.blueprint.folder
    values = dict(zip(blueprint.config.objective, best.values, strict=True))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    (folder / "best.yaml").write_text(best_yaml(ledger, best), encoding="utf-8")
    print(f"best: trial {best.number}, {shown}: {folder / 'best.yaml'}")
    tags = {"best.trial": str(best.number)} | {f"best.{name}": f"{value:.6g}" for name, value in values.items()}
    run = blueprint.trials_folder / blueprint.units(best.number)[0].name
    if blueprint.config.folds or not (run / "model").is_dir():
        return tags  # the folds' models have each seen a part of the data only
    checkpoints.publish(run / "model", folder / "best")
    registered = tracking.register(run, best.number, values)
    if registered:
        print(f"registered: {registered}")
    return tags | ({"best.model": registered} if registered else {})


def best_yaml(ledger: Ledger, best: FrozenTrial) -> str:
    """The configuration of a trial, for `python -m urg.train --config`; cross-validation is taken out."""
    import yaml

    config = ledger.blueprint.config
    names = ", ".join(f"{name} {value:.4f}" for name, value in zip(config.objective, best.values, strict=True))
    note = f"# Trial {best.number} of the sweep {config.name}: {names} on the dev split.\n"
    return note + yaml.safe_dump(_plain(_final(ledger, best)), sort_keys=False, allow_unicode=True)


def _final(ledger: Ledger, best: FrozenTrial) -> TrainConfig:
    from tuning.data import prepared

    blueprint, point = ledger.blueprint, ledger.values(best.number)
    config = blueprint.train_config(point, blueprint.units(best.number)[0], prepared(blueprint, point))
    return dataclasses.replace(
        config,
        name=f"{blueprint.config.name}-best",
        storage=str(Path(blueprint.config.storage)),
        data=dataclasses.replace(config.data, folds=None, fold=None),
    )


def _plain(config: TrainConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    values["optim"]["betas"] = list(values["optim"]["betas"])
    return values
