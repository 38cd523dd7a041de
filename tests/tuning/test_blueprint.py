"""What a sweep would run, and what it refuses before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.cli import parse_config
from data_pipeline.errors import UserError
from tuning.blueprint import Unit, choice_of_candidates, draw_up, first_rung
from tuning.config import PRESETS, SchedulerConfig, SweepConfig
from tuning.estimate import describe
from tuning.values import build
from urg.config import TrainConfig

Make = Callable[..., SweepConfig]


def test_a_sweep_that_is_older_than_a_setting_goes_on_with_its_default(make_sweep: Make) -> None:
    from tuning.sweep import _require_same_sweep, _write_identity

    blueprint = draw_up(make_sweep(resume=True))
    blueprint.folder.mkdir(parents=True)
    _write_identity(blueprint)
    stored = json.loads((blueprint.folder / "sweep.json").read_text())
    assert stored.pop("base: model.score_tokens") == "all"
    (blueprint.folder / "sweep.json").write_text(json.dumps(stored))
    _require_same_sweep(blueprint)
    other = draw_up(make_sweep(resume=True, overrides={"model.score_tokens": "response"}))
    with pytest.raises(
        UserError, match=r"another sweep: base: model\.score_tokens \(was 'all', now 'response'\); overrides"
    ):
        _require_same_sweep(other)


@pytest.mark.parametrize("folds", [None, 2])
def test_a_fold_that_was_counted_otherwise_is_why_an_older_sweep_of_folds_ends(
    make_sweep: Make, folds: int | None
) -> None:
    """It is older than `data.fold_dev`; every other setting is what it was. Without folds it goes on."""
    from tuning.sweep import _require_same_sweep, _write_identity

    blueprint = draw_up(make_sweep(resume=True, folds=folds))
    blueprint.folder.mkdir(parents=True)
    _write_identity(blueprint)
    stored = json.loads((blueprint.folder / "sweep.json").read_text())
    assert stored.pop("base: data.fold_dev") == ("held_out" if folds else "training")
    (blueprint.folder / "sweep.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="counted a fold by the best of its evaluations") if folds else nullcontext():
        _require_same_sweep(blueprint)


def test_a_trial_is_the_base_with_the_points_values(make_sweep: Make, tmp_path: Path, prepared_set: Path) -> None:
    blueprint = draw_up(make_sweep(overrides={"loss.gamma": 4.0}, retries=2))
    config = blueprint.train_config({"optim.lr": 0.05, "model.k": 2}, Unit(7))
    assert (config.optim.lr, config.model.k, config.loss.gamma, config.steps) == (0.05, 2, 4.0, 4)
    assert (config.name, config.storage) == ("trial-0007", str(tmp_path / "runs" / "tiny" / "trials"))
    assert (config.eval.metric, config.engine.max_failures, config.tracking.experiment) == ("label", 2, "tiny")
    assert config.data.shards == str(prepared_set)


@pytest.mark.parametrize(("retries", "failures"), [(None, 5), (0, 0)])
def test_a_trial_goes_on_as_often_as_the_base_would(make_sweep: Make, retries: int | None, failures: int) -> None:
    blueprint = draw_up(make_sweep(retries=retries, overrides={"engine.max_failures": 5}))
    assert blueprint.base.engine.max_failures == failures


def test_folds_are_units_of_their_own(make_sweep: Make) -> None:
    blueprint = draw_up(make_sweep(folds=3))
    units = blueprint.units(1)
    assert [unit.name for unit in units] == ["trial-0001-fold-0", "trial-0001-fold-1", "trial-0001-fold-2"]
    assert [blueprint.train_config({}, unit).data.fold for unit in units] == [0, 1, 2]
    assert all(blueprint.train_config({}, unit).data.measures_held_out for unit in units)
    assert blueprint.base.data.folds is None
    given = {"data.fold_dev": "held_out", "data.folds": 5, "data.fold": 1}
    assert draw_up(make_sweep(overrides=given)).train_config({}, Unit(0)).data.fold_dev == "training"


def test_lengths_are_prepared_in_the_sweeps_folder(make_sweep: Make, tmp_path: Path) -> None:
    space = {"prepare.lengths.response": {"choices": [32, 64]}}
    blueprint = draw_up(make_sweep(space=space, prepare="sample"))
    assert blueprint.base_value("prepare.lengths.response") == 64
    config = blueprint.prepare_config({"prepare.lengths.response": 32, "model.k": 2})
    assert config is not None
    assert (config.lengths.response, config.lengths.question) == (32, 96)
    assert config.output == str(tmp_path / "runs" / "tiny" / "shards")
    assert blueprint.train_config({"prepare.lengths.response": 32}, Unit(0), "/set").data.shards == "/set"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"space": {"loss.gama": {"low": 1, "high": 2}}}, "names loss.gama, .* nearest: loss.gamma"),
        ({"space": {"optim.lr": {"low": -1, "high": 2e-3}}}, r"optim.lr, value -1.0: optim.lr=-1.0: must be positive"),
        ({"space": {"loss.rank_loss": {"choices": ["hinge", "hing"]}}}, "loss.rank_loss, value 'hing'"),
        ({"space": {"model.k": {"low": 0, "high": 4}}}, "model.k, value 0: .*at least one candidate"),
        ({"space": {"optim.lr": {"low": 2e-3, "high": 3e-3}}}, "does not hold the base's own value 0.0015"),
        ({"space": {"engine.workers": {"low": 1, "high": 4}}}, "engine.workers, which the sweep sets itself"),
        ({"space": {"prepare.lengths.response": {"low": 8, "high": 64}}}, "say in `prepare`"),
        ({"space": {"prepare.lengths.answer": {"low": 8, "high": 64}}, "prepare": "sample"}, "prepare.lengths.answer"),
        ({"searcher": "grid"}, "optim.lr: a grid needs choices, or a step"),
        ({"objective": ["bertscore"]}, "eval.bertscore_model"),
        ({"objective": ["label", "bertscore"]}, "eval.bertscore_model"),
        ({"base": "no-such"}, "no-such: no such file or preset"),
        ({"overrides": {"loss.gama": 1}}, "gama"),
        ({"storage": "s3://bucket/x"}, "give a folder"),
    ],
)
def test_what_cannot_be_swept_is_named(make_sweep: Make, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        draw_up(make_sweep(**given))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"objective": ["loss"]}, "objective='loss': is never reported; there are rouge1"),
        ({"objective": []}, "at least one dev metric"),
        ({"trials": 0}, "trials=0"),
        ({"hours": 0}, "hours=0"),
        ({"folds": 1}, "folds=1"),
        ({"name": "a/b"}, "plain folder name"),
        ({"space": {}}, "at least one key"),
        ({"scheduler": SchedulerConfig("asha"), "folds": 3}, "cannot end the folds"),
        ({"scheduler": SchedulerConfig("asha"), "objective": ["label", "rougeL"]}, "compares one objective"),
    ],
)
def test_settings_out_of_range_are_named(make_sweep: Make, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_sweep(**given)


@pytest.mark.parametrize(
    ("searcher", "trials", "limit"),
    [
        ("tpe", None, "20 trials"),
        ("tpe", 3, "3 trials"),
        ("grid", None, "30 trials"),
        ("grid", 40, "40 trials"),
        ("grid", 5, "5 trials of the grid's 30 points (trials null tries all)"),
    ],
)
def test_a_grid_is_tried_whole_or_what_it_lacks_is_said(
    make_sweep: Make, searcher: str, trials: int | None, limit: str
) -> None:
    space = {"model.k": {"low": 1, "high": 6}, "loss.m": {"choices": [8, 16, 32, 64, 128]}}
    config = make_sweep(space=space, searcher=searcher, trials=trials)
    assert draw_up(config).limit == limit
    assert f"to raise label; {limit}\n" in describe(config)


def test_the_base_as_settings_that_yaml_has_is_the_same_base(make_sweep: Make) -> None:
    blueprint = draw_up(make_sweep())
    assert build(TrainConfig, yaml.safe_load(yaml.safe_dump(blueprint.settings)), {}) == blueprint.base


ALL = "no row has more than 12 candidates: all of them are fused."


def test_a_space_whose_k_leaves_nothing_to_choose_is_refused(make_sweep: Make) -> None:
    blueprint = draw_up(make_sweep(space={"model.k": {"low": 1, "high": 12}}))
    with pytest.raises(UserError, match=r"space model.k goes up to 12, and no row has more than 12 candidates: end it"):
        choice_of_candidates(blueprint, 12)
    assert choice_of_candidates(blueprint, 13) == []


@pytest.mark.parametrize("space", [{}, {"model.k": {"low": 1, "high": 2, "when": {"loss.rank_loss": "hinge"}}}])
def test_such_a_k_of_the_base_is_said(make_sweep: Make, space: dict[str, Any]) -> None:
    space = space | {"loss.rank_loss": {"choices": ["hinge", "listnet"]}}
    blueprint = draw_up(make_sweep(space=space, overrides={"model.k": 12}, base_first=False))
    assert choice_of_candidates(blueprint, 12) == [f"model.k=12 of the base, and {ALL}"]
    assert choice_of_candidates(blueprint, 13) == []
    searched = draw_up(make_sweep(overrides={"model.k": 12}, base_first=False))
    assert choice_of_candidates(searched, 12) == []  # up to 4: the base's is never used


BETA = {"loss.beta": {"low": 1, "high": 3}}
SELECTION = {"loss.selection": {"choices": ["predicted", "gold"]}}


@pytest.mark.parametrize(
    ("space", "gap", "idle"),
    [
        (BETA, None, "loss.beta"),
        (BETA, 0.5, "loss.beta"),
        (SELECTION, None, "loss.selection"),
        (SELECTION, 0.5, None),
        ({"loss.gamma": {"low": 1, "high": 10}}, None, None),
    ],
)
def test_it_is_refused_where_the_space_holds_what_it_switches_off(
    make_sweep: Make, space: dict[str, Any], gap: float | None, idle: str | None
) -> None:
    """Without a last candidate there is no KL and no second CE, also with a gap, which selection alone heeds."""
    blueprint = draw_up(make_sweep(space=space, overrides={"model.k": 12, "model.k_gap": gap}))
    assert choice_of_candidates(blueprint, 13) == []
    if idle is None:
        assert len(choice_of_candidates(blueprint, 12)) == 1
        return
    with pytest.raises(UserError, match=f"with K = N the space's {idle} would change nothing"):
        choice_of_candidates(blueprint, 12)


@pytest.mark.parametrize(("steps", "every", "rung"), [(60, 20, 20), (900, 10, 100), (900, 250, 250), (4, 2, 2)])
def test_asha_waits_for_a_ninth_of_the_steps_and_an_evaluation(
    make_sweep: Make, steps: int, every: int, rung: int
) -> None:
    blueprint = draw_up(make_sweep(scheduler=SchedulerConfig("asha"), overrides={"eval.every": every}))
    assert first_rung(blueprint, steps) == rung


def test_a_dry_run_says_what_would_run_and_writes_nothing(make_sweep: Make, tmp_path: Path, prepared_set: Path) -> None:
    before = sorted([*tmp_path.rglob("*"), *prepared_set.parent.rglob("*")])
    shown = describe(make_sweep(scheduler=SchedulerConfig("asha", grace=2, reduction=2)))
    assert "optim.lr: 0.0001 to 0.1, log; base 0.0015" in shown
    assert "up to 12 candidates a row" in shown
    assert "steps       4 a trial" in shown
    assert "ends trials at steps 2\n" in shown
    assert sorted([*tmp_path.rglob("*"), *prepared_set.parent.rglob("*")]) == before


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_can_be_drawn_up(preset: str, tmp_path: Path) -> None:
    arguments = ["--config", preset, "--storage", str(tmp_path)]
    blueprint = draw_up(parse_config(SweepConfig, presets=PRESETS, argv=arguments))
    assert blueprint.space.base_point(blueprint.base_value)


def test_a_trial_of_flan_t5_xl_is_a_fifth_of_a_training_with_few_evaluations_and_checkpoints(tmp_path: Path) -> None:
    """On as many rows as MixInstruct has; the full training that follows is the preset's again."""
    from urg.training.plan import Plan

    arguments = ["--config", "flan-t5-xl", "--storage", str(tmp_path)]
    blueprint = draw_up(parse_config(SweepConfig, presets=PRESETS, argv=arguments))
    trial, full = blueprint.train_config({}, Unit(0)), blueprint.full_config({})
    steps = Plan.of(trial, 100_000).steps
    assert (steps, Plan.of(full, 100_000).steps) == (6250, 31250)
    assert steps / trial.eval.every == 5
    assert first_rung(blueprint, steps) == 1250
    assert (trial.keep_checkpoints, trial.eval.rows) == (1, 1000)
    assert (full.keep_checkpoints, full.eval.rows) == (2, None)


def test_a_dotted_override_on_the_command_line_goes_before_the_presets(tmp_path: Path) -> None:
    arguments = ["--config", "sample", "--storage", str(tmp_path), "--overrides.eval.every", "7"]
    blueprint = draw_up(parse_config(SweepConfig, presets=PRESETS, argv=arguments))
    assert (blueprint.base.eval.every, blueprint.base.steps) == (7, 54)


def test_bad_input_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuning.sweep", "--config", "sample", "--storage", str(tmp_path), "--dry-run"]
    done = subprocess.run([*command, "--overrides.optim.lr", "9"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "optim.lr does not hold the base's own value 9.0" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
