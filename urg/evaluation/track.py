"""An evaluation in MLflow: added to the run that trained the model, and as a run a system below one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urg.evaluation.comparison import Comparison
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


def log_systems(model: Path, comparison: Comparison, provenance: Provenance) -> str | None:
    """One run a system, with its means, below a run for the evaluation, where the model's training was tracked.

    Returns the id of the run above; None where there is no training run. UserError where MLflow does not take them.
    """
    from urg.tracking import OFF
    from urg.tracking.mlflow_run import log_finished_runs

    found = _training_run(model)
    if found is None or found[1] == OFF:
        return None
    _, uri, experiment, name = found
    facts = {"split": str(provenance.data["split"]), "label": comparison.label, "trained_as": name}
    children = {r.name: ({"system": r.name, "kind": r.kind} | facts, r.means) for r in comparison.results}
    return log_finished_runs(uri, experiment, (f"evaluation of {name}", facts), children)


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
