"""`urg.train` up to where workers start: what it refuses, in one sentence, and what a dry run shows."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from tests.preparing import prepare_without_ray
from urg.config import EvalConfig, TrainConfig
from urg.system_config import SystemName
from urg.train import main, train

Make = Callable[..., TrainConfig]
SYSTEM_NAMES = get_args(SystemName)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared set of the sample, made without Ray."""
    from data_pipeline.config import PrepareConfig, SampleSize

    root = tmp_path_factory.mktemp("data")
    return prepare_without_ray(PrepareConfig(output=str(root), sample=SampleSize(24, 4, 4, 0)))


@pytest.fixture
def make(shards: Path, tmp_path: Path) -> Make:
    """make(key__subkey=value, …): a run on `shards`."""
    from data_pipeline.cli import parse_config

    def build(**overrides: Any) -> TrainConfig:
        values = {"data.shards": shards, "data.label": "rougeL", "eval.metric": "rougeL", "storage": tmp_path / "runs"}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        return parse_config(TrainConfig, argv=[f"--{key}={value}" for key, value in values.items()])

    return build


def test_a_dry_run_shows_the_plan_and_writes_nothing(make: Make, shards: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.rmtree(shards / ".cache", ignore_errors=True)
    before = sorted([*tmp_path.rglob("*"), *shards.parent.rglob("*")])
    main(make(dry_run="true", epochs=2, batch__micro=2, batch__accumulation=2, engine__workers=2))
    shown = capsys.readouterr().out
    assert not {"K", "storage", "model"} & {line.split(" ")[0] for line in shown.splitlines()}
    assert "steps       6 of 8 rows" in shown
    assert "2 × 1 CPU, ZeRO-2, bf16" in shown
    assert "parameters  " in shown
    assert "GiB a worker" in shown
    assert "gamma: 5.0" in shown
    main(make(dry_run="true", engine__workers=2, engine__min_workers=1, checkpoint_every=5))
    assert "1 to 2 × 1 CPU" in capsys.readouterr().out
    assert sorted([*tmp_path.rglob("*"), *shards.parent.rglob("*")]) == before


def test_a_dry_run_says_what_its_data_and_machine_do_not_have(make: Make, capsys: Any) -> None:
    main(make(dry_run="true", engine__workers=999, model__k=50, storage="/proc/x"))
    shown = capsys.readouterr().out
    assert "needs       999 CPUs; this machine has " in shown
    assert "K           50, and no row has more than 12 candidates" in shown
    assert "storage     /proc/x/urg cannot be written" in shown


def test_the_parameter_count_and_memory_follow_from_the_shape(make: Make) -> None:
    from urg.model import URG, Settings
    from urg.training.estimate import memory_per_worker, model_size

    config = make(engine__workers=4, engine__zero_stage=3)
    parameters, width, layers = model_size(config, 500)
    shape = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    assert parameters == sum(p.numel() for p in URG.from_scratch(500, Settings(), **shape).parameters())
    assert (width, layers) == (128, 4)
    spread = memory_per_worker(config, 4 * 2**30, 1, 1, 0)
    assert spread == {"weights": 2.0, "gradients": 2.0, "optimizer": 12.0, "activations": 0.0}
    alone = memory_per_worker(make(engine__zero_stage=0, engine__dtype="fp32"), 2**30, 1, 1, 0)
    assert alone == {"weights": 4.0, "gradients": 4.0, "optimizer": 12.0, "activations": 0.0}


@pytest.mark.parametrize(
    ("system", "own"),
    [
        ("pair_ranker", {"candidate_tokens": 64}),
        ("pair_ranker", {"candidate_tokens": 12}),
        ("pair_ranker", {"candidate_tokens": 12, "fills_up": "true"}),
        ("simcls", {"candidate_tokens": 64, "fills_up": "true"}),
        ("summareranker", {"candidate_tokens": 64}),
        ("gen_fuser", {}),
    ],
)
def test_a_dry_run_of_every_system_counts_what_it_would_train(
    make: Make, system: str, own: dict[str, Any], capsys: Any
) -> None:
    from data_pipeline.shards import ShardSet
    from urg.training.estimate import model_size, tokens_per_row
    from urg.training.task import Share, build_task

    settings = {f"ranker__{key}": value for key, value in own.items()}
    config = make(system=system, model__dropout=0.0, ranker__source_tokens=64, **settings)
    main(dataclasses.replace(config, dry_run=True))
    shown = capsys.readouterr().out
    assert f"system      {system}" in shown
    shards = ShardSet.open(config.data.shards)
    task = build_task(config, shards)
    asked = system == "pair_ranker" and "fills_up" in own
    assert system == "gen_fuser" or task.module.settings.fills_up == asked  # type: ignore[union-attr]
    parameters, _, _ = model_size(config, len(shards.tokenizer()))
    head = sum(p.numel() for name, p in task.module.named_parameters() if name.startswith("head"))
    prefixes = 0 if system == "gen_fuser" else 4 * config.model.scratch.d_model
    assert parameters == sum(p.numel() for p in task.module.parameters()) - head - prefixes
    split = shards.split("train")
    rows = np.arange(len(split))
    batch = task.batch(Share([split[row] for row in range(len(split))], rows, 1, 0), torch.device("cpu"))
    real = task.tokens(batch)[0] - (int(batch.target_mask_BT.sum()) if system == "gen_fuser" else 0)
    assert tokens_per_row(config, shards.manifest["splits"]["train"], shards.template) == pytest.approx(
        real / len(split), rel=0.25
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"data__shards": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"data__label": "bartscore"}, "bartscore"),
        ({"data__train_split": "exam"}, "exam"),
        ({"storage": "s3://bucket/runs"}, "give a folder"),
        ({"resume": "/nowhere/checkpoint-1"}, "cannot resume"),
    ],
)
def test_what_cannot_be_used_is_named(make: Make, override: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(make(**override))


def test_an_altered_shard_is_named_before_anything_is_written(make: Make, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    shard = min(copy.glob("train*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(UserError, match=shard.name):
        train(make(data__shards=copy))
    assert not (tmp_path / "runs").exists()


def test_a_base_model_that_is_not_there_is_one_sentence(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no weights"):
        train(make(model__base=tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="give a local folder"):
        train(make(model__base="google/flan-t5-large"))


def test_a_run_folder_that_cannot_be_written_is_one_sentence(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for storage in (tmp_path / "file" / "runs", Path("/sys/runs")):  # a file in the way; read-only, for root too
        with pytest.raises(UserError, match=f"Cannot write to the folder {storage}/urg"):
            train(make(storage=storage))


def test_one_run_folder_is_held_by_one_driver(make: Make, tmp_path: Path) -> None:
    from data_pipeline.commit import locked

    with locked(tmp_path / "runs" / "urg"), pytest.raises(UserError, match="Another process trains in"):
        train(make())


def test_a_run_may_change_its_workers_but_not_its_global_batch(make: Make, tmp_path: Path) -> None:
    from urg.train import _flat, _require_same_run

    def identity(**overrides: Any) -> dict[str, Any]:
        return {"config": _flat(make(**overrides)), "data": "key"}

    two = identity(engine__workers=2, batch__micro=2)
    for same in ({"batch__micro": 2, "batch__accumulation": 2}, {"engine__workers": 4, "batch__micro": 1}):
        _require_same_run(tmp_path, two, identity(**same))
    with pytest.raises(UserError, match=r"global batch \(was 4, now 2\)"):
        _require_same_run(tmp_path, two, identity(batch__micro=2))


def test_a_run_that_is_older_than_a_setting_goes_on_with_its_default(make: Make, tmp_path: Path) -> None:
    from urg.train import _flat, _require_same_run

    stored = {"config": _flat(make()), "data": "key"}
    for later in (
        "model.score_layers",
        "model.score_tokens",
        "model.k_gap",
        "loss.teacher_dropout",
        "batch.tokens",
        "loss.quality_scale",
        "loss.temperature",
        "ranker.fills_up",
    ):
        del stored["config"][later]
    _require_same_run(tmp_path, stored, {"config": _flat(make(batch__tokens=900)), "data": "key"})
    with pytest.raises(UserError, match=r"configuration: model\.score_layers \(was 'all', now 'last'\)\. Choose"):
        _require_same_run(tmp_path, stored, {"config": _flat(make(model__score_layers="last")), "data": "key"})
    with pytest.raises(UserError, match=r"model\.k_gap \(was None, now 0\.5\)"):
        _require_same_run(tmp_path, stored, {"config": _flat(make(model__k_gap=0.5)), "data": "key"})


def test_a_fold_that_is_older_than_the_choice_of_its_dev_rows_keeps_its_training_rows(
    make: Make, tmp_path: Path
) -> None:
    from urg.train import _flat, _require_same_run

    def identity(**overrides: Any) -> dict[str, Any]:
        return {"config": _flat(make(**overrides)), "data": "key"}

    folds = {"data__folds": 3, "data__fold": 1}
    old, without = identity(**folds), identity()
    for stored in (old, without):
        del stored["config"]["data.fold_dev"]
    _require_same_run(tmp_path, without, identity())
    _require_same_run(tmp_path, old, identity(**folds, data__fold_dev="held_out"))
    with pytest.raises(UserError, match=r"data\.fold_dev \(was 'held_out', now 'training'\)"):
        _require_same_run(tmp_path, old, identity(**folds))


def test_a_model_that_only_ranks_is_not_chosen_by_a_metric_of_text_that_it_took_over(make: Make) -> None:
    """A run that was begun so goes on: what it lacks here is its data."""
    from urg.training.state import IDENTITY

    ranks = {"loss__generation": "false", "data__shards": "/nowhere/at/all"}
    with pytest.raises(UserError, match=r"eval\.metric='rougeL'.*it only ranks: .* --eval\.metric label, or another"):
        main(make(**ranks, dry_run="true"))
    for allowed in (make(**ranks, eval__metric="spearman"), make(**ranks, system="simcls"), begun := make(**ranks)):
        if allowed is begun:
            (Path(begun.storage) / begun.name).mkdir(parents=True)
            (Path(begun.storage) / begun.name / IDENTITY).touch()
        with pytest.raises(UserError, match="/nowhere/at/all"):
            main(allowed)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5])
def test_any_number_of_workers_takes_the_whole_global_batch(make: Make, workers: int) -> None:
    from urg.batching import micro_batches

    config = make(engine__workers=4, engine__min_workers=1, checkpoint_every=5, batch__micro=3, batch__accumulation=2)
    rows, shares = np.arange(config.global_batch), []
    for rank in range(workers):
        shares += micro_batches(rows, np.full(len(rows), 7), rank, workers, config.accumulation(workers))
    assert sorted(np.concatenate(shares)) == rows.tolist()
    assert max(map(len, shares)) <= config.batch.micro
    assert config.accumulation(4) == 2


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run", "--dry_run=true", "--dry-run=true"])
def test_a_flag_needs_no_value(flag: str) -> None:
    from data_pipeline.cli import parse_config

    plain = ["--eval.metric", "rougeL"]
    assert parse_config(TrainConfig, argv=[flag, *plain]).dry_run
    assert parse_config(TrainConfig, argv=[*plain, flag]).dry_run


def test_an_unknown_key_ends_with_code_2_and_one_line() -> None:
    command = [sys.executable, "-m", "urg.train", "--config", "sample", "--loss.gama", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "--loss.gama" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


GLOBAL_BATCHES = {
    "sample": 16,
    "sample-paper": 16,
    "scratch": 8,
    "flan-t5-large": 128,
    "flan-t5-xl": 32,
    "gen-fuser": 120,
}
GLOBAL_BATCHES |= dict.fromkeys(("pair-ranker", "simcls", "summareranker"), 64)
GLOBAL_BATCHES |= {f"sample-{name}": 16 for name in ("pair-ranker", "simcls", "summareranker", "gen-fuser")}


@pytest.mark.parametrize("preset", GLOBAL_BATCHES)
def test_every_preset_is_a_valid_configuration(preset: str) -> None:
    from data_pipeline.cli import parse_config
    from urg.config import PRESETS

    config = parse_config(TrainConfig, presets=PRESETS, argv=["--config", preset])
    assert config.global_batch == GLOBAL_BATCHES[preset]
    named = preset.removeprefix("sample-").replace("-", "_")
    assert config.system == (named if named in SYSTEM_NAMES else "urg")


def test_the_preset_of_pair_ranker_reads_as_much_of_a_candidate_as_the_published_one() -> None:
    from data_pipeline.cli import parse_config
    from urg.config import PRESETS

    assert parse_config(TrainConfig, presets=PRESETS, argv=["--config", "pair-ranker"]).ranker.fills_up
    assert not TrainConfig(eval=EvalConfig(metric="label")).ranker.fills_up, "what older folders had"


def test_every_preset_is_tested() -> None:
    from urg.config import PRESETS

    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(GLOBAL_BATCHES)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--system=bart"], "system is bart; give one of 'urg', "),
        (["--system=gen_fuser", "--eval.metric=label"], "gen_fuser does not rank"),
        (["--ranker.pairs=0"], "ranker.pairs=0"),
        (["--ranker.tasks=[a,a]"], "ranker.tasks"),
        (["--fuser.source_tokens=3"], "fuser.source_tokens=3"),
        (["--fuser.choose=pair_ranker"], "fuser.predictions=None with fuser.choose='pair_ranker'"),
        (["--fuser.predictions=[x.parquet]"], "with fuser.choose='label'"),
        (["--fuser.choose=random", "--fuser.predictions=[x.parquet]"], "with fuser.choose='random'"),
        (["--system=pair_ranker", "--ranker.inference=bubble", "--engine.zero_stage=3"], "ranker.inference='bubble'"),
    ],
)
def test_settings_of_the_other_systems_are_checked(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_pipeline.cli import parse_config

    with pytest.raises(SystemExit):
        parse_config(TrainConfig, argv=["--eval.metric=rougeL", *arguments])
    assert named in capsys.readouterr().err


def test_a_task_that_the_data_have_no_score_for_is_named(make: Make) -> None:
    from data_pipeline.shards import ShardSet
    from urg.training.task import build_task

    for tasks, sentence in (("[nothing]", "has the score nothing"), ("[rougeL,rouge1]", "simcls has one score")):
        config = make(system="simcls", ranker__tasks=tasks)
        with pytest.raises(UserError, match=sentence):
            build_task(config, ShardSet.open(config.data.shards))


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """play(fit): from now on this is what Ray Train does, without Ray, in a session of the run's own."""
    import ray

    from data_pipeline import ray_session
    from urg import train as module

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(module, "_require_resources", lambda _: None)
    return lambda fit: monkeypatch.setattr(module, "_trainer", lambda _: SimpleNamespace(fit=fit))


@pytest.mark.parametrize(("failures", "again"), [(0, 0), (2, 2), (9, 3)])
def test_a_worker_that_dies_before_it_begins_is_tried_again_as_one_that_trains(
    failures: int, again: int, make: Make, tmp_path: Path, play: Callable[[Callable[[], Any]], None]
) -> None:
    """What `fit` does when the cluster loses a worker to which it hands the training function."""
    from ray.exceptions import ActorDiedError
    from ray.train import ControllerError

    from urg import train as module
    from urg.training.state import Job, Outcome

    job, started = Job(make(engine__max_failures=3), tmp_path, "off", None, {}), []

    def fit() -> SimpleNamespace:
        started.append(1)
        if len(started) <= failures:
            raise ControllerError(ActorDiedError())
        return SimpleNamespace(return_value=Outcome(stopped_at=7))

    play(fit)
    if failures > 3:
        with pytest.raises(ControllerError):
            module._through_failed_starts(job)
    else:
        assert module._through_failed_starts(job) == Outcome(stopped_at=7)
    assert len(started) == again + 1
    said = (tmp_path / "train.log").read_text() if again else ""
    assert said.count("a worker was lost before it began (ActorDiedError)") == again


def test_no_start_meets_a_snapshot_of_ray_that_an_earlier_one_left(
    make: Make, tmp_path: Path, play: Callable[[Callable[[], Any]], None]
) -> None:
    """Ray starts no run over a damaged one (tests/faults/test_snapshot.py), and writes it in place, without a checksum.
    The second start is one after a worker that was lost."""
    from ray.exceptions import ActorDiedError
    from ray.train import ControllerError

    from urg import train as module
    from urg.training.state import Job, Outcome

    snapshot, met = tmp_path / "checkpoint_manager_snapshot.json", []
    snapshot.write_text('{"checkpoint_res')

    def fit() -> SimpleNamespace:
        met.append(snapshot.exists())
        snapshot.write_text('{"checkpoint_res')
        if len(met) < 2:
            raise ControllerError(ActorDiedError())
        return SimpleNamespace(return_value=Outcome())

    play(fit)
    assert module._through_failed_starts(Job(make(), tmp_path, "off", None, {})) == Outcome()
    assert met == [False, False]


def test_what_another_start_does_not_mend_ends_a_run(
    make: Make, tmp_path: Path, play: Callable[[Callable[[], Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.exceptions import ActorDiedError
    from ray.train import ControllerError

    from urg import train as module
    from urg.training.notices import UNTIL_STOPPED
    from urg.training.state import Job

    def bug() -> None:
        raise ControllerError(ValueError("a bug"))

    def stopped() -> None:
        (tmp_path / UNTIL_STOPPED).unlink()
        raise ControllerError(ActorDiedError())

    def lost() -> None:
        raise ControllerError(ActorDiedError())

    for fit, session_of_the_caller in ((bug, False), (stopped, False), (lost, True)):
        play(fit)
        monkeypatch.setattr(ray, "is_initialized", lambda own=session_of_the_caller: own)
        with pytest.raises(ControllerError):
            module._through_failed_starts(Job(make(), tmp_path, "off", None, {}))
    assert not (tmp_path / "train.log").exists()
