"""An evaluation joins the MLflow run that trained the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from tests.urg.made_up import StubEnsemble, StubShards, random_rows
from urg.evaluate import evaluate
from urg.evaluation.config import EvaluateConfig, EvaluationTracking
from urg.evaluation.track import add_to_training_run, log_systems
from urg.tracking import Tracker, default_uri

COMPARISON: Any = SimpleNamespace(
    label="quality",
    results=[
        SimpleNamespace(name="urg", kind="fuser", means={"rougeL": 0.5}),
        SimpleNamespace(name="urg_rank", kind="ranker", means={"label": 0.4, "hit@1": 0.3}),
        SimpleNamespace(name="some-model", kind="model", means={"label": 0.1}),
    ],
)
PROVENANCE: Any = SimpleNamespace(data={"split": "test"})


def logged(model: Path | None, uri: str | None = None, key: str = "one", **changes: Any) -> str | None:
    settings: dict[str, Any] = {"shards": "x", "output": "runs/out", "model": str(model) if model else None}
    config = EvaluateConfig(**settings, tracking=EvaluationTracking(uri), **changes)
    return log_systems(config, COMPARISON, PROVENANCE, key)


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


def test_each_system_is_a_run_below_one_of_the_evaluation(model: Path) -> None:
    from mlflow.tracking import MlflowClient

    parent = logged(model)
    client = MlflowClient(default_uri(model.parents[1]))
    experiment = client.get_experiment_by_name("urg").experiment_id
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    found = {run.info.run_name: run for run in below}
    assert set(found) == {"urg", "urg_rank", "some-model"}
    assert found["urg_rank"].data.metrics == {"label": 0.4, "hit_at_1": 0.3}
    assert found["some-model"].data.metrics == {"label": 0.1}  # one name in all runs: what is compared
    facts = {"kind": "fuser", "label": "quality", "split": "test", "system": "urg", "trained_as": "mine", "seed": "0"}
    facts |= {"model": str(model)}
    assert found["urg"].data.params == facts
    assert {run.info.status for run in below} == {"FINISHED"}
    assert client.get_run(parent).info.run_name == "evaluation of mine"


def test_a_server_that_is_away_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = model.parent / "config.yaml"
    config = yaml.safe_load(settings.read_text()) | {"tracking": {"uri": "http://127.0.0.1:9", "experiment": "urg"}}
    settings.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 did not take the runs"):
        logged(model)
    settings.write_text(yaml.safe_dump(config | {"tracking": {"uri": "off", "experiment": "urg"}}))
    assert logged(model) is None


def runs_of(uri: str, experiment: str = "urg") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for several tests, since making one takes seconds."""
    return default_uri(tmp_path_factory.mktemp("mlflow"))


def test_a_repetition_goes_into_the_same_runs_and_other_answers_into_new_ones(uri: str) -> None:
    first = logged(None, uri)
    assert logged(None, uri) == first
    assert sorted(run.info.run_name for run in runs_of(uri)) == ["evaluation of out", "some-model", "urg", "urg_rank"]
    assert logged(None, uri, key="two") != first
    assert len(runs_of(uri)) == 8


@pytest.mark.parametrize("how", ["baselines alone", "a copied model", "all folds"])
def test_what_has_no_training_run_at_hand_is_logged_where_the_setting_says(
    how: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_pipeline.shards import ShardSet

    rows, folders = random_rows(8), {"baselines alone": [], "a copied model": ["copied"], "all folds": ["m-0", "m-1"]}
    monkeypatch.setattr(ShardSet, "open", classmethod(lambda cls, folder: StubShards(rows)))
    for name in folders[how]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "urg.json").write_text(json.dumps({"steps": 7, "label": "quality"}))
    model = {"baselines alone": None, "a copied model": "copied", "all folds": "m-{fold}"}[how]
    settings: dict[str, Any] = {"shards": "x", "output": str(tmp_path / "out"), "label": "quality"}
    settings |= {"systems": "random,longest" + (",urg_rank" if model else "")}
    settings |= {"model": model and str(tmp_path / model), "folds": 2 if how == "all folds" else None}
    evaluate(EvaluateConfig(**settings), lambda config: StubEnsemble())  # type: ignore[arg-type,return-value]
    assert "not added to MLflow: no tracked run" in capsys.readouterr().out
    tracked = EvaluateConfig(**settings, tracking=EvaluationTracking(uri, how))
    for _ in range(2):
        evaluate(tracked, lambda config: StubEnsemble())  # type: ignore[arg-type,return-value]
        assert "a run a system below" in capsys.readouterr().out
    assert len(runs_of(uri, how)) == 1 + len(settings["systems"].split(","))


def test_folds_are_logged_where_the_first_parts_model_was_trained(model: Path) -> None:
    pattern = model.parent.parent / "mine{fold}" / "model"
    model.parent.rename(model.parent.parent / "mine0")
    parent = logged(pattern, folds=2)
    assert parent is not None
    assert {run.info.run_name for run in runs_of(default_uri(model.parents[1]))} > {"evaluation of mine", "urg_rank"}


def test_a_login_in_the_address_is_refused() -> None:
    with pytest.raises(ValueError, match="has a login in it"):
        EvaluationTracking("http://me:secret@server")
