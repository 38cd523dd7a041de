"""The sweep's saved view: everything that it names is what the trials' runs have. MLflow in SQLite, no training."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from data_pipeline.errors import UserError
from tuning.blueprint import Unit, draw_up, trial_name
from tuning.config import SweepConfig
from tuning.ledger import Ledger, Outcome
from tuning.mlflow_view import view_link, view_tag
from tuning.tracking import SweepTracking
from urg.tracking import Tracker

Make = Callable[..., SweepConfig]


def _state(tag: dict[str, str]) -> dict[str, Any]:
    """What MLflow's UI does with the tag."""
    (value,) = tag.values()
    view = json.loads(value)
    assert isinstance(view["name"], str)
    assert isinstance(view["createdAt"], int)
    header, _, packed = view["state"].partition(";")
    assert header == "deflate"
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def test_the_view_names_what_runs_have_and_finds_the_trials_alone(make_sweep: Make) -> None:
    from mlflow.tracking import MlflowClient

    blueprint = draw_up(make_sweep(objective=["hit@1"], overrides={"tracking.uri": None}))
    blueprint.trials_folder.mkdir(parents=True)
    ledger = Ledger.open(blueprint, 4)
    tracking = SweepTracking(ledger)
    for number, score in enumerate((0.4, 0.6)):
        ledger.ask()
        point, spool = ledger.point(number), blueprint.trials_folder / trial_name(number) / "mlflow-spool"
        tags = tracking.tags(Unit(number))
        with Tracker(blueprint.tracking_uri, "tiny", trial_name(number), spool=spool, tags=tags) as run:
            run.log_params(blueprint.train_config(point, Unit(number)))
            run.log_metrics({"dev/hit@1": score}, 4)  # MLflow takes no @
        outcome = Outcome("pruned" if number else "finished", [score], 4, "ended by ASHA at step 4" * number, 9.0)
        outcome.write(blueprint.trials_folder / trial_name(number))
        ledger.tell(number)
        tracking.settle(number, outcome)
    tracking.close([], {})

    client = MlflowClient(blueprint.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    state = _state({key: value for key, value in experiment.tags.items() if key.startswith("mlflow.sharedViewState.")})
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
    runs = client.search_runs([experiment.experiment_id], state["searchFilter"], order_by=[order])
    assert [run.info.run_name for run in runs] == ["trial-0001", "trial-0000"]
    has = {f"{kind}.`{key}`" for kind in ("metrics", "params", "tags") for run in runs
           for key in getattr(run.data, kind)}  # fmt: skip
    assert set(state["selectedColumns"]) <= has
    sections = {section["uuid"] for section in state["compareRunSections"]}
    for chart in state["compareRunCharts"]:
        assert chart["metricSectionId"] in sections
        assert {f"params.`{key}`" for key in chart.get("selectedParams", [])} <= has
        named = [*chart.get("selectedMetrics", []), *([chart["metricKey"]] if "metricKey" in chart else [])]
        assert {f"metrics.`{key}`" for key in named} <= has
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])
    assert tracking.view == view_link(blueprint, experiment.experiment_id)


def test_a_link_says_how_to_start_the_ui_and_keeps_no_login(make_sweep: Make) -> None:
    local = draw_up(make_sweep(name="a b", overrides={"tracking.uri": None}))
    assert view_link(local, "3").startswith(
        "http://127.0.0.1:5000/#/experiments/3/runs?viewStateShareKey=a%20b after `mlf"
    )
    with pytest.raises(UserError, match=r"tracking\.uri='https://…': has a login in it"):
        draw_up(make_sweep(overrides={"tracking.uri": "https://me:secret@mlflow.example"}))
    server = dataclasses.replace(local, tracking_uri="https://me:secret@mlflow.example")
    assert view_link(server, "3") == "https://***@mlflow.example/#/experiments/3/runs?viewStateShareKey=a%20b"


def test_a_view_of_many_keys_is_still_a_tag(make_sweep: Make) -> None:
    """MLflow takes tags of an experiment up to 5,000 characters in every version."""
    keys = ["loss.gamma", "loss.beta", "loss.tau", "loss.m", "loss.schedule_steps", "optim.lr", "optim.clip", "model.k",
            "optim.weight_decay", "batch.micro", "batch.accumulation", "seed", "steps", "epochs"]  # fmt: skip
    space = {key: {"low": 1, "high": 4} for key in keys} | {"optim.lr": {"low": 1e-4, "high": 1e-3}}
    (value,) = view_tag(draw_up(make_sweep(space=space, base_first=False, objective=["label", "ndcg"]))).values()
    assert len(value) < 5000


def test_a_view_that_cannot_be_saved_is_a_warning(
    make_sweep: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from urg.tracking import mlflow_run

    def away(*_: object) -> str:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(mlflow_run, "tag_experiment", away)
    blueprint = draw_up(make_sweep(overrides={"tracking.uri": None}))
    blueprint.trials_folder.mkdir(parents=True)
    tracking = SweepTracking(Ledger.open(blueprint, 4))
    tracking.close([], {})
    assert tracking.view is None
    assert "the sweep's view was not saved in MLflow (nobody answers)" in caplog.text
