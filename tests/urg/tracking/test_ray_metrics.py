"""The gauges are those that the dashboard and the alerts ask for, and reach Prometheus under those names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.util.metrics

from urg.tracking import ray_metrics

MONITORING = Path(__file__).parents[3] / "cluster" / "monitoring"
NAMES = {name for name, _ in (*ray_metrics.GAUGES.values(), ray_metrics.CHECKPOINT_TIME)}


@pytest.mark.parametrize("file", ["grafana-dashboard.json", "alerts.yaml"])
def test_what_is_shown_exists(file: str) -> None:
    asked_for = set(re.findall(r"\bray_(urg_\w+)", (MONITORING / file).read_text()))
    assert asked_for
    assert asked_for - NAMES == set()


def test_all_that_exists_is_shown() -> None:
    text = (MONITORING / "grafana-dashboard.json").read_text()
    assert [name for name in NAMES if f"ray_{name}{{" not in text] == []


Published = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """What is published, by name, value and tags, in the place of Ray's."""
    published: Published = []

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            assert tag_keys == ("run",)
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            published.append((self.name, value, tags))

    monkeypatch.setattr(ray.util.metrics, "Gauge", Recorded)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    ray_metrics._gauge.cache_clear()
    yield published
    ray_metrics._gauge.cache_clear()


def test_only_known_names_are_published(seen: Published) -> None:
    ray_metrics.publish({"train/loss": 2.5, "train/lr": 0.1, "train/kl": 0.0}, "mine")
    tags = {"run": "mine"}
    assert seen == [("urg_loss", 2.5, tags), ("urg_loss_kl", 0.0, tags)]


def test_a_checkpoint_has_the_time_of_its_file_else_of_now(seen: Published, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.touch()
    os.utime(manifest, (1_000_000, 2_000_000))
    ray_metrics.checkpoint_written("mine", manifest)
    ray_metrics.checkpoint_written("mine", tmp_path / "gone.json")
    before = time.time()
    ray_metrics.checkpoint_written("mine")
    (first, loaded, _), (second, written, tags) = seen
    assert first == second == "urg_checkpoint_time_seconds"
    assert tags == {"run": "mine"}
    assert loaded == 2_000_000
    assert before <= written <= time.time()


def test_outside_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    ray_metrics.publish({"train/loss": 2.5}, "mine")
    ray_metrics.checkpoint_written("mine")
    assert ray_metrics._gauge.cache_info().currsize == 0
