"""A small prepared set, made without Ray, and sweeps over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.preparing import prepare_without_ray
from tuning.config import SchedulerConfig, SweepConfig

SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
SPACE = {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.k": {"low": 1, "high": 4}}


@pytest.fixture(scope="session")
def prepared_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four rows of the sample to train on, twelve candidates each."""
    from data_pipeline.config import PrepareConfig, SampleSize

    root = tmp_path_factory.mktemp("sweep-data")
    return prepare_without_ray(PrepareConfig(output=str(root), sample=SampleSize(24, 4, 4, 0)))


@pytest.fixture
def overrides(prepared_set: Path) -> dict[str, Any]:
    """Trials of four steps of a tiny model from random weights, untracked."""
    values: dict[str, Any] = {f"model.scratch.{key}": value for key, value in SHAPE.items()}
    values |= {"model.base": None, "data.shards": str(prepared_set), "steps": 4, "batch.micro": 2}
    values |= {"model.k": 3, "optim.lr": 1.5e-3}
    values |= {"eval.every": 2, "eval.rows": 2, "eval.max_new_tokens": 4, "engine.dtype": "fp32"}
    return values | {"engine.workers": 1, "tracking.uri": "off", "tracking.log_every": 1}


@pytest.fixture
def make_sweep(tmp_path: Path, overrides: dict[str, Any]) -> Callable[..., SweepConfig]:
    """make_sweep(field=value, …): a sweep of tiny trials; `overrides` are added to the fixture's."""

    def make(**given: Any) -> SweepConfig:
        values = {
            "name": "tiny",
            "storage": str(tmp_path / "runs"),
            "objective": ["label"],
            "space": SPACE,
            "trials": 6,
        }
        given["overrides"] = overrides | given.get("overrides", {})
        return SweepConfig(**(values | given))

    return make


@pytest.fixture
def asha() -> SchedulerConfig:
    """Rungs at steps 2 and 4."""
    return SchedulerConfig("asha", grace=2, reduction=2)
