"""What a dry run says that a run would lack: a line each, and the rest all the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.cli import parse_config
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from tests.preparing import prepare_without_ray
from urg.config import PRESETS, TrainConfig
from urg.train import main
from urg.training.estimate import describe
from urg.training.readiness import k_line, machine_line, storage_line

Make = Callable[..., TrainConfig]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(preset, key__subkey=value, …), in a folder without data, on a machine that cannot reach the hub."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def build(preset: str = "sample", **overrides: Any) -> TrainConfig:
        values = [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()]
        return parse_config(TrainConfig, presets=PRESETS, argv=["--config", preset, *values])

    return build


@pytest.mark.parametrize("preset", [path.stem for path in sorted(PRESETS.glob("*.yaml"))])
def test_every_preset_can_be_looked_at_before_there_is_anything(make: Make, preset: str, capsys: Any) -> None:
    config = make(preset, dry_run="true")
    main(config)
    shown = capsys.readouterr().out
    assert f"there is no prepared set in {config.data.shards} yet: python -m data_pipeline.prepare " in shown
    assert f"epochs in steps of {config.global_batch} rows" in shown
    assert f"workers     {config.engine.workers} × " in shown
    assert shown.splitlines()[-1] == "dry run: nothing was written."
    assert list(Path.cwd().iterdir()) == []


def test_the_preset_of_the_paper_names_its_prepare_command_and_what_is_missing(make: Make) -> None:
    shown = describe(make("flan-t5-large"))
    assert (
        "python -m data_pipeline.prepare --input hf:llm-blender/mix-instruct --tokenizer google/flan-t5-large "
        "--output data/mix-instruct\n"
    ) in shown
    assert "model       Cannot load the model google/flan-t5-large" in shown
    assert "parameters  " not in shown


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({}, "it has none: add it by data_pipeline.label and prepare again"),
        ({"own": 1.0}, "it has own: name one of those by data.label, or add it by data_pipeline.label"),
    ],
)
def test_a_label_that_no_row_has_is_told_with_the_ways_to_one(make: Make, scores: dict[str, float], said: str) -> None:
    candidates = [{"model": name, "text": name, "scores": scores} for name in "ab"]
    rows = [{"id": str(i), "instruction": f"q{i}", "output": "a", "candidates": candidates} for i in range(9)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_without_ray(PrepareConfig("rows.jsonl", "set", tokenizer="train"))
    with pytest.raises(UserError, match=f"has no score bartscore; {said}"):
        describe(make("scratch", data__shards="set"))


def test_a_model_at_hand_is_sized_without_data(make: Make) -> None:
    shown = describe(make("sample", steps=5))
    assert "steps       5 of 16 rows" in shown
    assert "parameters  1,493,376" in shown
    assert "and activations, which depend on the data" in shown


def test_what_no_run_could_be_made_of_is_still_an_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no weights"):
        describe(make(model__base="empty"))


def test_more_workers_than_the_machine_has_are_told_with_both_numbers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert machine_line(make(engine__workers=2)) == []
    assert machine_line(make(engine__workers=32, engine__cpus_per_worker=2)) == [
        "needs       64 CPUs; this machine has 2 CPUs: only on a cluster"
    ]
    (line,) = machine_line(make(engine__workers=99, engine__use_gpu="true"))
    assert line.startswith("needs       99 CPUs and 99 GPUs; this machine has 2 CPUs and ")
    for address, lines in (("local", 1), ("somewhere:6379", 0)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert len(machine_line(make(engine__workers=32))) == lines


def test_a_k_that_leaves_nothing_to_choose_is_told(make: Make) -> None:
    facts = {"candidates": {"max": 12}}
    assert k_line(make(model__k=11), facts) == []
    assert "no row has more than 12 candidates: all of them are fused" in k_line(make(model__k=50), facts)[0]
    assert "12 candidates: no last one is left" in k_line(make(model__k=50, model__k_gap=0.5), facts)[0]
    assert k_line(make("sample-simcls", model__k=50), facts) == []


@pytest.mark.parametrize("place", ["blocked/runs", "/proc/x", "/sys/runs", "s3://bucket/runs"])
def test_a_storage_that_cannot_be_written_is_told_and_not_touched(make: Make, tmp_path: Path, place: str) -> None:
    (tmp_path / "blocked").write_text("a file")
    (line,) = storage_line(make(storage=place))
    assert line.endswith("a run would be refused")
    assert storage_line(make(storage="deep/er/runs")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["blocked"]
