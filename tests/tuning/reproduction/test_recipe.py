from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import config as prepare_config
from data_pipeline import stats
from data_pipeline.cli import parse_config
from data_pipeline.errors import UserError
from tuning import config as sweep_config
from tuning.reproduce import asked, plan, reproduce, wanted
from tuning.reproduction.config import ReproduceConfig, load_preset
from tuning.reproduction.experiments import ALSO, EXPERIMENTS, ON_REQUEST
from tuning.reproduction.recipe import ABLATIONS, ALL_CANDIDATES, ALL_ROWS, BASELINES, PAPERS_RANKING, URG
from tuning.reproduction.steps import Ending, Step
from urg import benchmark
from urg import config as train_config
from urg.evaluation.answer_store import NOT_IN_KEY
from urg.evaluation.config import EvaluateConfig
from urg.tracking.loggable import flatten

ALL = ",".join(EXPERIMENTS)
COMMANDS: dict[str, tuple[Any, Path | None]] = {
    "data_pipeline.prepare": (prepare_config.PrepareConfig, prepare_config.PRESETS),
    "data_pipeline.stats": (stats.StatsConfig, None),
    "urg.train": (train_config.TrainConfig, train_config.PRESETS),
    "urg.evaluate": (EvaluateConfig, None),
    "urg.benchmark": (benchmark.BenchmarkConfig, None),
    "tuning.sweep": (sweep_config.SweepConfig, sweep_config.PRESETS),
}


@pytest.mark.parametrize(
    ("preset", "only"),
    [("sample", ALL), ("flan-t5-large", ALL), ("flan-t5-xl", ALL), ("encoder", "recipes,beyond")],
)
def test_every_step_is_a_command_that_parses(preset: Any, only: str, tmp_path: Path):
    recipe, needs = plan(ReproduceConfig(preset=preset, shards=str(tmp_path / "set"), storage=str(tmp_path), only=only))
    steps = wanted(recipe, needs)
    assert needs.keys() >= set(only.split(","))
    assert (steps == recipe.steps) == (only == ALL)
    for step in steps.values():
        config_class, presets = COMMANDS[step.command[0]]
        parse_config(config_class, presets=presets, argv=step.command[1:])  # exits where it is wrong
    assert all(name in recipe.steps for names in needs.values() for name in names)
    assert all(need in recipe.steps for step in recipe.steps.values() for need in (*step.needs, *step.after))


def planned(**settings: Any) -> dict[str, Step]:
    """The steps that a reproduction would run."""
    return wanted(*plan(ReproduceConfig(**settings)))


@pytest.mark.parametrize("preset", ["flan-t5-large", "flan-t5-xl"])
def test_at_full_size_everything_that_computes_is_where_a_gpu_is(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Trainings by their workers; evaluations and their metrics by pools, in bf16, and so with no GPU of the step's."""
    steps = planned(preset=preset, shards=str(tmp_path), storage=str(tmp_path), only=ALL).values()
    for step in steps:
        if step.command[0] == "urg.evaluate":
            config = parse_config(EvaluateConfig, argv=step.command[1:])
            assert (config.device, config.dtype, step.gpu) == ("cuda", "bf16", False)
            assert config.workers > 1
            assert config.bleurt_tokens == 128
        elif step.command[0] == "urg.benchmark":
            timed = parse_config(benchmark.BenchmarkConfig, argv=step.command[1:])
            assert (step.gpu, timed.batches) == (True, (8, 16, 32))
        elif step.command[0] == "urg.train":
            assert _trained(step)["engine.use_gpu"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = plan(ReproduceConfig(preset=preset, shards=str(tmp_path), storage=str(tmp_path)))[0]
    assert recipe.at_once == 1  # every training wants all GPUs of this machine
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert recipe.at_once > 1
    assert not any(step.gpu for step in planned(storage=str(tmp_path)).values())
    path = tmp_path / "here.yaml"
    path.write_text(f"like: {preset}\nevaluate: {{workers: 0}}\n")
    here = planned(preset=str(path), shards=str(tmp_path), storage=str(tmp_path))
    assert all(step.gpu for step in here.values() if step.command[0] == "urg.evaluate")


def test_a_preset_is_a_file_that_says_what_differs(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text("like: flan-t5-xl\nks: [1, 3]\nevaluate: {workers: 3}\nmodels: {bleurt_model: B}\n")
    ours, theirs = load_preset(str(path)), load_preset("flan-t5-xl")
    assert (ours.ks, ours.name, ours.systems) == ([1, 3], "flan-t5-xl", theirs.systems)
    assert ours.evaluate == theirs.evaluate | {"workers": 3}
    assert ours.models == theirs.models | {"bleurt_model": "B"}
    assert (theirs.systems["urg"], theirs.systems["gen_fuser"]) == ("flan-t5-xl", "gen-fuser")
    assert theirs.benchmark["rankers"]["ranker_shape"] == "deberta-v3-large"
    path.write_text("like: sample\nevalaute: {}\n")
    with pytest.raises(UserError, match="there is no setting evalaute; choose from"):
        load_preset(str(path))
    path.write_text("seeds: 1\n")
    with pytest.raises(UserError, match=r"it lacks ks, .*systems"):
        load_preset(str(path))
    with pytest.raises(UserError, match="no such file or preset"):
        load_preset("absent")


def test_overrides_and_local_models_reach_every_training_and_the_sweep(tmp_path: Path):
    """Of all systems the overrides, of one its own base; BERTScore's model where the preset measures it."""
    encoder = tmp_path / "bert"
    encoder.mkdir()
    steps = planned(
        preset="flan-t5-large", shards=str(tmp_path), storage=str(tmp_path), only=ALL, bertscore_model=str(encoder),
        overrides={"engine": {"workers": 4}, "tracking.uri": "http://mlflow:5000"},
        bases={"pair_ranker": str(tmp_path)},
    )  # fmt: skip
    trained = {name: _trained(step) for name, step in steps.items() if step.command[0] == "urg.train"}
    assert {own["engine.workers"] for own in trained.values()} == {4}
    assert {own["tracking.uri"] for own in trained.values()} == {"http://mlflow:5000"}
    assert trained["train-urg-s0"]["eval.bertscore_model"] == str(encoder)
    assert trained["train-pair_ranker-s0"]["eval.bertscore_model"] is None
    assert trained["train-pair_ranker-s0"]["model.base"] == str(tmp_path)
    assert trained["train-gen_fuser-s0"]["model.base"] == "google/flan-t5-xl"
    assert trained["train-k1-s0"]["model.k"] == 1
    sweep = parse_config(sweep_config.SweepConfig, presets=sweep_config.PRESETS, argv=steps["sweep"].command[1:])
    assert {"engine.workers": 4, "eval.bertscore_model": str(encoder)}.items() <= sweep.overrides.items()
    with pytest.raises(UserError, match=r"overrides: data\.shards is the reproduction's to set"):
        planned(overrides={"data": {"shards": "x"}}, storage=str(tmp_path))
    with pytest.raises(UserError, match="there is no system bart; choose from urg, simcls"):
        planned(bases={"bart": "x"}, storage=str(tmp_path))


@pytest.mark.parametrize("preset", ["flan-t5-large", "flan-t5-xl"])
def test_a_training_says_bertscores_model_where_the_user_does(preset: str, tmp_path: Path):
    """The preset's stands in the training's own file: a command that repeats it is another one than of before."""
    own = planned(preset=preset, shards=str(tmp_path), storage=str(tmp_path), only=ALL)
    assert not [name for name, step in own.items() if "--eval.bertscore_model" in step.command]
    assert "eval.bertscore_model" not in " ".join(own["sweep"].command)
    assert _trained(own["train-urg-s0"])["eval.bertscore_model"] == load_preset(preset).models["bertscore_model"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.beta", 0.5), ("loss.m", 8), ("loss.tau", 1.0), ("loss.selection", "gold"), ("loss.second_ce", False),
        ("model.score_layers", "last"), ("model.score_tokens", "response"), ("model.k_gap", 0.7),
    ],
)  # fmt: skip
def test_a_training_with_an_override_is_no_longer_the_papers(key: str, value: Any, tmp_path: Path):
    """Nor is any recipe of the preset, which gets the override too; the sample's own is said with it."""
    given = {"storage": str(tmp_path), "shards": str(tmp_path)}
    for preset, papers in (("flan-t5-large", URG), ("flan-t5-xl", URG), ("sample", "paper")):
        own = plan(ReproduceConfig(preset, "fig3", **given))[0]  # type: ignore[arg-type]
        changed = plan(ReproduceConfig(preset, "fig3", **given, overrides={key: value}))[0]  # type: ignore[arg-type]
        assert (own.papers_variant, changed.papers_variant) == (papers, None)
        assert own.ranking(papers) == PAPERS_RANKING
        assert changed.ranking(papers) == f"{PAPERS_RANKING}, {key} {value}"


@pytest.mark.parametrize("preset", ["sample", "flan-t5-large", "flan-t5-xl", "encoder"])
def test_a_recipe_beyond_the_paper_changes_what_it_says_and_nothing_else(preset: Any, tmp_path: Path):
    """Each as the trainer reads it, against the preset's own."""
    given = ReproduceConfig(preset=preset, shards=str(tmp_path / "set"), storage=str(tmp_path), only="beyond")
    recipe, needs = plan(given)
    own = _trained(recipe.steps[f"train-{URG}-s0"])
    assert recipe.preset.beyond.keys() >= {"response_tokens", "last_layer"}
    for name, changed in recipe.preset.beyond.items():
        other = _trained(recipe.steps[f"train-{name}-s0"])
        assert {"name"} < {key for key in own if own[key] != other[key]} <= {"name", *changed}
        assert {key: other[key] for key in changed} == changed
        assert f"evaluate-{name}-s0" in needs["beyond"]


def test_the_miniature_keeps_the_papers_k_and_one_rate_whatever_the_samples_preset_has(tmp_path: Path):
    steps = planned(storage=str(tmp_path), only="table2,beyond,sweep")
    sweep = parse_config(sweep_config.SweepConfig, presets=sweep_config.PRESETS, argv=steps["sweep"].command[1:])
    assert {"model.k": 3, "optim.lr": 1.5e-3}.items() <= sweep.overrides.items()
    for name in (URG, *BASELINES):
        own = _trained(steps[f"train-{name}-s0"])
        assert (own["model.k"], own["optim.lr"]) == (3, 1.5e-3)
    preset = parse_config(train_config.TrainConfig, presets=train_config.PRESETS, argv=["--config", "sample"])
    best = _trained(steps["train-learning_rate_k6-s0"])
    assert (best["model.k"], best["optim.lr"]) == (preset.model.k, preset.optim.lr)


def test_what_several_experiments_need_is_trained_once_a_seed(tmp_path: Path):
    def trained(only: str | None) -> set[str]:
        return {name for name in planned(only=only, storage=str(tmp_path)) if name.startswith("train-")}

    alone = {name: trained(name) for name in EXPERIMENTS}
    assert trained(None) == set().union(*(alone[name] for name in EXPERIMENTS if name not in ON_REQUEST))
    assert alone["beyond"] >= {f"train-{URG}-s0", "train-schedule-s0"}
    assert f"train-{URG}-s0" in alone["table2"] & alone["table3"] & alone["fig3"] & alone["table5"]
    assert not any("k3" in name for name in alone["fig3"])  # K=3 is URG itself
    assert f"train-{ALL_CANDIDATES}-s0" in alone["table3"] & alone["fig3"]
    assert len(alone["table3"]) == 3 * (1 + len(ABLATIONS))


def test_sheet_and_cases_take_the_answers_that_table2_keeps(tmp_path: Path):
    """The same folder and the same options that answers depend on; trained is only what each of them shows."""
    whole = planned(storage=str(tmp_path))
    compared = _evaluated(whole["compare-s0"])
    for name in ("human-s0", "cases-s0"):
        own = _evaluated(whole[name])
        assert {key: own[key] for key in own.keys() - NOT_IN_KEY} == {
            key: compared[key] for key in own.keys() - NOT_IN_KEY
        }
        assert own["output"] == compared["output"]
        assert "compare-s0" in whole[name].after
    alone = planned(only="table6", storage=str(tmp_path))
    assert alone["human-s0"].command == whole["human-s0"].command
    assert set(alone) == {"prepare", "train-urg-s0", "train-pair_ranker-s0", "train-gen_fuser-s0", "human-s0"}


def _trained(step: Any) -> dict[str, Any]:
    config = parse_config(train_config.TrainConfig, presets=train_config.PRESETS, argv=step.command[1:])
    return dict(flatten(config))


def _evaluated(step: Any) -> dict[str, Any]:
    return asdict(parse_config(EvaluateConfig, presets=None, argv=step.command[1:]))


def test_one_seed_is_measured_on_every_row_where_the_others_take_the_first_ones(tmp_path: Path):
    sample = planned(only="table2", storage=str(tmp_path))
    compared, wide = _evaluated(sample["compare-s0"]), _evaluated(sample[ALL_ROWS])
    differ = {key for key in compared if compared[key] != wide[key]}
    assert (differ, compared["rows"], wide["rows"]) == ({"output", "rows"}, 400, None)
    prepared = parse_config(prepare_config.PrepareConfig, presets=prepare_config.PRESETS,
                            argv=sample["prepare"].command[1:])  # fmt: skip
    assert prepared.sample.test >= 1000
    full = planned(preset="flan-t5-large", only="table2", shards="set", storage=str(tmp_path))
    assert ALL_ROWS not in full


def test_the_sample_trains_sixteen_rows_a_step_on_one_worker_and_times_nothing_beside_others(tmp_path: Path):
    recipe = plan(ReproduceConfig(storage=str(tmp_path)))[0]
    argv = recipe.steps["train-urg-s0"].command[1:]
    config = parse_config(train_config.TrainConfig, presets=train_config.PRESETS, argv=argv)
    assert (config.global_batch, config.engine.workers) == (16, 1)
    assert {name for name, step in recipe.steps.items() if step.alone} == {
        *("benchmark-rankers", "benchmark-complexity", "sweep")
    }
    assert (recipe.at_once, plan(ReproduceConfig(at_once=5, storage=str(tmp_path)))[0].at_once) == (2, 5)


def test_more_seeds_add_steps_and_change_none(tmp_path: Path):
    few, many = (plan(ReproduceConfig(seeds=n, storage=str(tmp_path)))[0].steps for n in (1, 2))
    assert few.items() <= many.items()
    assert len(many) > len(few)


def test_experiments_by_name_come_in_the_order_of_the_report():
    assert asked("fig3, table1") == ["table1", "fig3"]
    assert asked("table7,table4") == ["table4"]
    assert asked(None) == [name for name in EXPERIMENTS if name not in ON_REQUEST]
    assert asked("beyond,table1") == ["table1", "beyond"]
    assert set(ALSO.values()) <= EXPERIMENTS.keys()
    with pytest.raises(UserError, match="there is no experiment table9; choose from table1, table2"):
        asked("table1,table9")


def test_mixinstruct_must_be_prepared_by_the_user(tmp_path: Path):
    with pytest.raises(UserError, match=r"data_pipeline\.prepare --input hf:llm-blender/mix-instruct"):
        plan(ReproduceConfig(preset="flan-t5-large", only="table3", storage=str(tmp_path)))


@pytest.mark.parametrize(("only", "steps"), [("table4", ["benchmark-rankers"]), ("s3.5", ["benchmark-complexity"])])
def test_speed_needs_no_data(only: str, steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planned, run and reported without --shards; of what needs them the report says that nobody asked."""
    config = ReproduceConfig(preset="flan-t5-large", only=only, storage=str(tmp_path))
    recipe, needs = plan(config)
    assert list(wanted(recipe, needs)) == steps
    failed = lambda root, wanted, at_once, data_key: {name: Ending(failure="stopped") for name in wanted}  # noqa: E731
    monkeypatch.setattr("tuning.reproduction.steps.run_steps", failed)
    report, failures = reproduce(recipe, needs)
    assert failures == steps
    stored = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))["experiments"]
    missing = {name: part["missing"] for name, part in stored.items() if name in EXPERIMENTS}
    assert missing.pop(ALSO.get(only, only)) == f"{steps[0]}: stopped"
    assert set(missing.values()) == {"not asked for"}


def test_a_preset_may_have_fewer_systems_than_the_paper(tmp_path: Path):
    """What needs the others is named where it is asked for, and left out where it is not."""
    path = tmp_path / "few.yaml"
    path.write_text("systems: {urg: sample}\nseeds: 1\nks: [1]\nprepare: {config: sample}\n")
    steps = planned(preset=str(path), only="table3,fig3", storage=str(tmp_path))
    assert {"prepare", "train-urg-s0", "train-wo_erm-s0", "train-k1-s0"} <= steps.keys()
    needs = plan(ReproduceConfig(preset=str(path), only="fig3", storage=str(tmp_path)))[1]
    assert needs.keys().isdisjoint({"table2", "table5", "table6", "table8"})
    with pytest.raises(UserError, match=r"few\.yaml has no system simcls, which is asked for"):
        planned(preset=str(path), only="table2", storage=str(tmp_path))
    path.write_text("systems: {simcls: sample-simcls}\nseeds: 1\nks: [1]\n")
    with pytest.raises(UserError, match=r"few\.yaml: its systems lack urg"):
        load_preset(str(path))


def test_a_preset_that_is_like_itself_is_named(tmp_path: Path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"like: {one}\n")
    with pytest.raises(UserError, match=r"one\.yaml: it is like itself"):
        load_preset(str(one))
    one.write_text(f"like: {other}\n")
    other.write_text(f"like: {one}\n")
    with pytest.raises(UserError, match=r"it is like itself \(.*one\.yaml → .*other\.yaml → .*one\.yaml\)"):
        load_preset(str(one))


@pytest.mark.parametrize("changes", [{"name": "a/b"}, {"seeds": 0}, {"at_once": 0}])
def test_settings_are_checked_on_construction(changes: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ReproduceConfig(**changes)
