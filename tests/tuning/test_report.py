"""The report of a sweep whose trials are made up: no Ray, no training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.cli import parse_config
from tuning.blueprint import Blueprint, draw_up, trial_name
from tuning.config import SweepConfig
from tuning.finish import best_trial_yaml, best_yaml, drop_checkpoints, finish
from tuning.ledger import Ledger, Outcome
from tuning.report import write_report
from tuning.report_figures import comparable, importances, sections
from tuning.tracking import SweepTracking
from urg.config import TrainConfig
from urg.training.evaluations import record_evaluation

Make = Callable[..., SweepConfig]


def _swept(config: SweepConfig, trials: int = 8) -> Ledger:
    """Scores rise with the learning rate; trial 1 is ended early, trial 2 fails."""
    blueprint = draw_up(config)
    blueprint.trials_folder.mkdir(parents=True)
    (blueprint.folder / "sweep.json").write_text(json.dumps({"objective": config.objective}))
    ledger = Ledger.open(blueprint, 4)
    for _ in range(trials):
        number = ledger.ask()
        score = ledger.point(number)["optim.lr"]
        run = blueprint.trials_folder / trial_name(number)
        run.mkdir()
        record_evaluation(run, 2, {"label": score / 2})
        record_evaluation(run, 4, {"label": score})
        if len(config.objective) == 1:
            ledger.report(number, 2, score / 2)
        if number == 1 and len(config.objective) == 1:
            Outcome("pruned", [score / 2], 2, "ended by ASHA at step 2", 60.0).write(run)
        elif number == 2:
            Outcome("failed", reason="<b>out of memory</b>", seconds=30.0).write(run)
        else:
            Outcome("finished", [score, -score][: len(config.objective)], 4, seconds=90.0).write(run)
        ledger.tell(number)
    return ledger


class _Reader(HTMLParser):
    """Collects tags that load something, and the figures' JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self._figure = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [f"{tag} {given[key]}" for key in ("src", "href") if key in given]
        self._figure = tag == "script" and "data-figure" in given

    def handle_data(self, data: str) -> None:
        if self._figure:
            self.figures.append(json.loads(data))
            self._figure = False


def test_the_page_is_whole_and_works_offline(make_sweep: Make) -> None:
    ledger = _swept(make_sweep(trials=8))
    page, text = write_report(ledger)
    shown = page.read_text()
    reader = _Reader()
    reader.feed(shown)
    assert reader.loads == []
    titles = [figure["data"][0]["type"] for figure in reader.figures]
    assert titles.count("contour") == 1
    assert len(reader.figures) >= 7  # history, importance, parallel, two slices, a contour, curves, cost
    assert all(figure["data"] for figure in reader.figures)
    assert "8 trials (6 finished, 1 ended early, 1 failed) by tpe" in shown
    assert "&lt;b&gt;out of memory&lt;/b&gt;" in shown
    assert "<b>out of memory" not in shown
    best = ledger.best()
    assert best is not None
    assert f"Best: trial {best.number}, label {best.values[0]:.4f}" in text.read_text()
    assert len(re.findall(r"^\| \d", text.read_text(), re.M)) == 8


def test_the_best_is_the_one_with_the_highest_value_and_trains_as_it_is(make_sweep: Make, tmp_path: Any) -> None:
    ledger = _swept(make_sweep(trials=8))
    best = ledger.best()
    assert best is not None
    assert best.values[0] == max(trial.values[0] for trial in ledger.ended() if trial.state.name == "COMPLETE")
    file = tmp_path / "best.yaml"
    file.write_text(best_yaml(ledger, best))
    config = parse_config(TrainConfig, argv=["--config", str(file)])
    assert (config.optim.lr, config.model.k) == (best.params["optim.lr"], best.params["model.k"])
    assert (config.name, config.data.folds, config.optim.betas) == ("tiny-best", None, (0.9, 0.999))
    assert config.data.fold_dev == "training"


def test_the_best_configuration_is_the_full_training_and_the_trials_own_stands_beside_it(
    make_sweep: Make, tmp_path: Path
) -> None:
    """What the overrides shorten is the base's own again; what they otherwise change, and the point, hold."""
    overrides = {"data.limit": 20, "loss.gamma": 2.0, "tracking.experiment": "mine", "tracking.uri": None}
    ledger = _swept(make_sweep(retries=0, overrides=overrides), trials=1)
    best = ledger.best()
    assert best is not None
    trained = {}
    for name, text in (("full", best_yaml(ledger, best)), ("trial", best_trial_yaml(ledger, best))):
        (tmp_path / f"{name}.yaml").write_text(text)
        trained[name] = parse_config(TrainConfig, argv=["--config", str(tmp_path / f"{name}.yaml")])
    full, trial = trained["full"], trained["trial"]
    assert (trial.steps, trial.data.limit, trial.eval.every, trial.eval.rows) == (4, 20, 2, 2)
    assert (full.steps, full.epochs, full.data.limit, full.eval.every, full.eval.rows) == (None, 1.0, None, 220, 120)
    assert (trial.engine.max_failures, full.engine.max_failures) == (0, 3)
    assert (trial.tracking.experiment, full.tracking.experiment) == ("tiny", "mine")
    assert full.tracking.uri == trial.tracking.uri == ledger.blueprint.tracking_uri
    same = ("model", "loss", "optim", "batch", "system", "seed")
    assert [getattr(full, key) for key in same] == [getattr(trial, key) for key in same]
    assert full.data.shards == trial.data.shards
    assert "steps 4, " in (tmp_path / "full.yaml").read_text().splitlines()[1]


def test_a_length_that_was_searched_for_is_the_full_trainings_too(make_sweep: Make) -> None:
    space = {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "steps": {"low": 2, "high": 8}}
    blueprint = draw_up(make_sweep(space=space))
    assert blueprint.full_config({"optim.lr": 0.01, "steps": 8}).steps == 8
    assert blueprint.full_config({"optim.lr": 0.01}).steps is None


def test_folds_export_no_model_and_say_so(make_sweep: Make, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.open(_folder(draw_up(make_sweep(folds=2))), 4)
    number = ledger.ask()
    ledger.point(number)
    for unit in ledger.blueprint.units(number):
        run = ledger.blueprint.trials_folder / unit.name
        (run / "model").mkdir(parents=True)
        Outcome("finished", [0.5], 4).write(run)
    ledger.tell(number)
    finish(ledger, SweepTracking(ledger))
    assert "no model is exported or registered: each fold's has seen a part of the data" in capsys.readouterr().out
    assert not (ledger.blueprint.folder / "best").exists()
    assert (ledger.blueprint.folder / "best.yaml").exists()


def _folder(blueprint: Blueprint) -> Blueprint:
    blueprint.trials_folder.mkdir(parents=True)
    (blueprint.folder / "sweep.json").write_text("{}")
    return blueprint


def test_what_matters_is_said_only_where_it_can_be(make_sweep: Make) -> None:
    ledger = _swept(make_sweep(trials=8))
    assert next(iter(importances(ledger))) == "optim.lr"
    few = _swept(make_sweep(name="few"), trials=1)
    assert importances(few) == {}
    assert write_report(few)[0].exists()


def test_where_trials_were_ended_early_all_are_compared_at_the_last_step_that_each_reached(make_sweep: Make) -> None:
    """Seven of eight have not failed; each was recorded at step 2, with half of its score."""
    ledger = _swept(make_sweep(trials=8))
    study, which = comparable(ledger)
    alive = [trial for trial in ledger.ended() if trial.state.name != "FAIL"]
    assert [trial.value for trial in study.trials] == [trial.params["optim.lr"] / 2 for trial in alive]
    assert "step 2" in which
    assert "all trials at step 2" in write_report(ledger)[1].read_text()
    whole = _swept(make_sweep(name="whole", objective=["label", "ndcg"]))
    assert comparable(whole) == (whole.study, "finished trials")


def test_no_value_is_drawn_in_the_colour_of_the_page(make_sweep: Make) -> None:
    figures = [figure for section in sections(_swept(make_sweep())) for figure in section.figures]
    traces = [trace for figure in figures for trace in figure.data]
    scales = [trace["line"]["colorscale"] for trace in traces if trace["type"] == "parcoords"]
    scales += [
        t["marker"]["colorscale"] for t in traces if t["type"] == "scatter" and "colorscale" in t.get("marker", {})
    ]
    assert len(scales) >= 3  # parallel coordinates, and a slice for each of the two keys
    assert not {colour for scale in scales for _, colour in scale} & {"rgb(247,251,255)", "#ffffff"}


def test_several_objectives_have_a_front(make_sweep: Make) -> None:
    ledger = _swept(make_sweep(objective=["label", "ndcg"]))
    front = sections(ledger)[0].figures[0]
    assert [trace["name"] for trace in front.data] == ["others", "Pareto front"]
    assert len(front.data[1]["x"]) == 7  # what one objective wins, the other loses


@pytest.mark.parametrize("keep", [False, True])
def test_checkpoints_of_ended_trials_go_and_models_stay(make_sweep: Make, keep: bool) -> None:
    blueprint = draw_up(make_sweep(keep_checkpoints=keep))
    run = blueprint.trials_folder / trial_name(0)
    for folder in ("checkpoint-00000002-abcdef", "model"):
        (run / folder).mkdir(parents=True)
    drop_checkpoints(blueprint, 0)
    assert {path.name for path in run.iterdir()} == ({"model", "checkpoint-00000002-abcdef"} if keep else {"model"})
