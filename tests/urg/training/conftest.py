"""A small prepared set and one Ray for the tests that train."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urg.config import TrainConfig

SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_started: None) -> Path:
    """Twenty-two rows of the sample to train on, prepared: a number that no batch size here divides."""
    from data_pipeline.config import PrepareConfig, SampleSize
    from data_pipeline.prepare import prepare

    root = tmp_path_factory.mktemp("data")
    with contextlib.redirect_stdout(io.StringIO()):
        return prepare(
            PrepareConfig(output=str(root), tokenizer="train", vocab_size=600, sample=SampleSize(22, 6, 6, 0))
        )


@pytest.fixture
def make_config(shards: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """make_config(name, "a.b=c", …): a tiny run of six steps on `shards`, through the real command line."""
    from data_pipeline.cli import parse_config

    def make(name: str = "run", **overrides: Any) -> TrainConfig:
        values = {
            "name": name,
            "storage": tmp_path / "runs",
            "steps": 6,
            "data.shards": shards,
            "data.label": "rougeL",
            "model.chunk_tokens": 512,
            "batch.micro": 2,
            "eval.every": 3,
            "eval.rows": 3,
            "eval.metric": "label",
            "eval.max_new_tokens": 4,
            "engine.dtype": "fp32",
            "tracking.uri": "off",
            "tracking.log_every": 1,
            "optim.lr": 0.01,
        }
        values |= {f"model.scratch.{key}": value for key, value in SHAPE.items()}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        arguments = [
            part
            for key, value in values.items()
            for part in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))
        ]
        return parse_config(TrainConfig, argv=arguments)

    return make
