"""Adding an evaluation to the MLflow run that trained the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urg.evaluation.comparison import Comparison

SYSTEMS = ("urg", "urg_rank", "oracle", "random")


def add_to_training_run(model: Path, split: str, comparison: Comparison, files: list[Path]) -> str | None:
    """Log `<split>/<system>/<metric>` and the files to the run in whose folder `model` lies; the run's id.

    None where the model's parent is no run folder, or the run was not tracked.
    """
    import yaml

    from urg.tracking import Tracker, absolute_uri, last_run

    run = model.resolve().parent
    spool, settings = run / "mlflow-spool", run / "config.yaml"
    if not (spool.is_dir() and settings.is_file()):
        return None
    config = yaml.safe_load(settings.read_text(encoding="utf-8"))
    uri = absolute_uri(config["tracking"]["uri"] or "", Path(config["storage"]))
    step = json.loads((model / "urg.json").read_text(encoding="utf-8"))["steps"]
    with Tracker(
        uri, config["tracking"]["experiment"], config["name"], last_run(spool), spool=spool, system_interval=None
    ) as tracker:
        for result in comparison.results:
            if result.name in SYSTEMS:
                tracker.log_metrics({f"{split}/{result.name}/{k}": v for k, v in result.means.items()}, step)
        for file in files:
            tracker.log_artifact(file, f"evaluation/{split}")
    return tracker.run_id
