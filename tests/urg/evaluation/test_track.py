"""An evaluation joins the MLflow run that trained the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from urg.evaluation.track import add_to_training_run
from urg.tracking import Tracker, default_uri

COMPARISON: Any = SimpleNamespace(
    results=[
        SimpleNamespace(name="urg", means={"rougeL": 0.5}),
        SimpleNamespace(name="urg_rank", means={"label": 0.4}),
        SimpleNamespace(name="some-model", means={"label": 0.1}),
    ]
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The model folder of a run that was tracked in SQLite."""
    run = tmp_path / "runs" / "mine"
    (run / "model").mkdir(parents=True)
    (run / "model" / "urg.json").write_text(json.dumps({"steps": 7}))
    config = {"name": "mine", "storage": str(run.parent), "tracking": {"uri": None, "experiment": "urg"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with Tracker(default_uri(run.parent), "urg", "mine", spool=run / "mlflow-spool", system_interval=None) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 7)
    return run / "model"


def test_means_and_files_are_added_to_the_same_run(model: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    report = tmp_path / "report.html"
    report.write_text("<p>")
    run_id = add_to_training_run(model, "test", COMPARISON, [report])
    client = MlflowClient(default_uri(model.parents[1]))
    (run,) = client.search_runs([client.get_experiment_by_name("urg").experiment_id])
    assert run.info.run_id == run_id
    assert {"train/loss": 1.0, "test/urg/rougeL": 0.5, "test/urg_rank/label": 0.4}.items() <= run.data.metrics.items()
    assert not any("some-model" in name for name in run.data.metrics)
    assert [point.step for point in client.get_metric_history(run_id, "test/urg/rougeL")] == [7]
    assert [file.path for file in client.list_artifacts(run_id, "evaluation/test")] == ["evaluation/test/report.html"]


def test_a_model_that_is_in_no_run_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert add_to_training_run(tmp_path / "model", "test", COMPARISON, []) is None
