"""An evaluation in MLflow: added to the run that trained the model, and as a run a system below one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urg.evaluation.comparison import Comparison
    from urg.evaluation.config import EvaluateConfig
    from urg.evaluation.results import Provenance

SYSTEMS = ("urg", "urg_rank", "oracle", "random")


def add_to_training_run(model: Path, split: str, comparison: Comparison, files: list[Path]) -> str | None:
    """Log `<split>/<system>/<metric>` and the files to the run in whose folder `model` lies; the run's id.

    None where the model's parent is no run folder, or the run was not tracked.
    """
    from urg.tracking import Tracker, last_run

    found = _training_run(model)
    if found is None:
        return None
    spool, uri, experiment, name = found
    step = json.loads((model / "urg.json").read_text(encoding="utf-8"))["steps"]
    with Tracker(uri, experiment, name, last_run(spool), spool=spool, system_interval=None) as tracker:
        for result in comparison.results:
            if result.name in SYSTEMS:
                tracker.log_metrics({f"{split}/{result.name}/{k}": v for k, v in result.means.items()}, step)
        for file in files:
            tracker.log_artifact(file, f"evaluation/{split}")
    return tracker.run_id


def log_systems(config: EvaluateConfig, comparison: Comparison, provenance: Provenance, key: str) -> str | None:
    """One run a system, with its means, below a run for the evaluation: where `config.tracking` says, else where the
    model was trained.

    key: what the answers depend on; an evaluation with the same key goes into the same runs. Returns the id of the run
    above; None where there is no place for it. UserError where MLflow does not take them.
    """
    from urg.tracking import OFF
    from urg.tracking.mlflow_run import Finished, log_finished_runs

    place = _place(config)
    if place is None or place[0] == OFF:
        return None
    uri, experiment, trained_as = place
    facts = {"split": str(provenance.data["split"]), "label": comparison.label, "seed": str(config.seed)}
    facts |= {"model": str(config.model)} if config.model else {}
    facts |= {"folds": str(config.folds)} if config.folds else {}
    facts |= {"trained_as": trained_as} if trained_as else {}
    children = [
        Finished(result.name, {"system": result.name, "kind": result.kind} | facts, result.means)
        for result in comparison.results
    ]
    name = f"evaluation of {trained_as or Path(config.output).name}"
    return log_finished_runs(uri, experiment, Finished(name, facts), children, key)


def _place(config: EvaluateConfig) -> tuple[str, str, str | None] | None:
    """(tracking uri, experiment, name of the training run or None); None where no place is known."""
    from urg.tracking import absolute_uri

    models = [Path(part.model) for part in config.parts if part.model]
    found = _training_run(models[0]) if models else None
    asked = config.tracking
    if asked.uri:
        uri = absolute_uri(asked.uri, Path())
    elif found is not None:
        uri = found[1]
    else:
        return None
    return uri, asked.experiment or (found[2] if found else "urg"), found[3] if found else None


def _training_run(model: Path) -> tuple[Path, str, str, str] | None:
    """(spool, tracking uri, experiment, name) of the run in whose folder `model` lies; None where it is in none."""
    import yaml

    from urg.tracking import absolute_uri

    run = model.resolve().parent
    spool, settings = run / "mlflow-spool", run / "config.yaml"
    if not (spool.is_dir() and settings.is_file()):
        return None
    config = yaml.safe_load(settings.read_text(encoding="utf-8"))
    uri = absolute_uri(config["tracking"]["uri"] or "", Path(config["storage"]))
    return spool, uri, config["tracking"]["experiment"], config["name"]
