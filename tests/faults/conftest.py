"""A small prepared set, made without Ray, and the weights of a run that nothing befell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.training import STEPS, Run
from tests.preparing import prepare_without_ray
from tests.urg.training import conftest as training
from urg.training.state import Outcome

run_workers = training.run_workers


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: the tests of a file stay together, and so do all that start nodes."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two rows of the sample to train on: a number that no batch size here divides."""
    from data_pipeline.config import PrepareConfig, SampleSize

    root = tmp_path_factory.mktemp("faults-data")
    return prepare_without_ray(PrepareConfig(output=str(root), sample=SampleSize(22, 6, 6, 0)))


@pytest.fixture
def make_run(shards: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """make_run(name, environment, option=value, …): a run that is not started yet, and is ended with the test."""
    made: list[Run] = []

    def make(name: str, environment: dict[str, str] | None = None, **options: Any) -> Run:
        made.append(Run(shards, tmp_path / "runs", name, environment, **options))
        return made[-1]

    yield make
    for run in made:
        run.kill()


@pytest.fixture(scope="session")
def train_calmly(run_workers: Callable[..., list[Outcome | None]]) -> Callable[[Run], None]:
    """train_calmly(run): from start to end, and without Ray, which makes no difference to what a run leaves."""

    def train(run: Run) -> None:
        from data_pipeline.cli import parse_config
        from urg.config import TrainConfig

        config = parse_config(TrainConfig, argv=run.arguments)
        assert run_workers(config, config.engine.workers) == [Outcome()] * config.engine.workers

    return train


@pytest.fixture(scope="session")
def calm(shards: Path, train_calmly: Callable[[Run], None], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing befell, done."""
    run = Run(shards, tmp_path_factory.mktemp("faults-runs"), "calm")
    train_calmly(run)
    assert run.steps() == list(range(1, STEPS + 1))
    return run


@pytest.fixture(scope="session")
def undisturbed(calm: Run) -> dict[str, torch.Tensor]:
    """The final weights of a run that nothing befell."""
    return calm.weights()
