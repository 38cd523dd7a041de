"""A small prepared set, made without Ray, and the weights of a run that nothing befell."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.training import Run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two rows of the sample to train on: a number that no batch size here divides."""
    from data_pipeline import plan, ray_session
    from data_pipeline.config import PrepareConfig, SampleSize
    from data_pipeline.prepare import prepare

    root = tmp_path_factory.mktemp("faults-data")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(plan, "_in_order", lambda tasks, work: map(work, tasks))
        patch.setattr(ray_session, "ray_session", contextlib.nullcontext)
        return prepare(PrepareConfig(output=str(root), sample=SampleSize(22, 6, 6, 0)))


@pytest.fixture
def make_run(shards: Path, tmp_path: Path) -> Callable[..., Run]:
    """make_run(name, environment, option=value, …): a run that is not started yet."""

    def make(name: str, environment: dict[str, str] | None = None, **options: Any) -> Run:
        return Run(shards, tmp_path / "runs", name, environment, **options)

    return make


@pytest.fixture(scope="session")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The final weights of a run that nothing befell, in a Ray of its own."""
    calm = Run(shards, tmp_path_factory.mktemp("faults-runs"), "calm")
    calm.whole()
    assert calm.steps() == list(range(1, 61))
    return calm.weights()
