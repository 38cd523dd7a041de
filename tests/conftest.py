"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# On a busy machine an example may take any time, a first import of torch above all.
settings.register_profile("urg", deadline=None, derandomize=True, database=None)
settings.load_profile("urg")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray Train takes one checkpoint's report at each look at its workers: every two seconds, while a tiny run writes five.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


@pytest.hookimpl(trylast=True)  # after those that are not asked for are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with slow tests first: those of a second fill up what time the processes of `make test` have left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """One local Ray for all tests of the session that need it: four slots, whatever the machine has."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real outputs of real models, in a folder beside the repository; a test that needs them is skipped without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "alpaca_eval.jsonl").is_file():
        pytest.skip(f"real data are not there: {folder}")
    return folder
