"""CPUs and processes whose owner was killed come back; those of the living stay. Real Ray, no training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tuning.orphans import end_cleaners, free_placement_groups, orphans_freed

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(240)]


class PlacementGroupCleaner:
    """As Ray Train has it, as far as its name."""

    def pid(self) -> int:
        import os

        return os.getpid()


class TrainController:
    """Takes a CPU and starts its helper, as Ray Train's does."""

    def start(self) -> int:
        import ray
        from ray.util import placement_group

        self._group = placement_group([{"CPU": 1}])
        ray.get(self._group.ready())
        self._cleaner = ray.remote(num_cpus=0)(PlacementGroupCleaner).options(lifetime="detached").remote()
        return ray.get(self._cleaner.pid.remote())


def _eventually(holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.2)
    return False


def _controllers(count: int) -> list[tuple[Any, int]]:
    import ray

    made = [ray.remote(num_cpus=0)(TrainController).remote() for _ in range(count)]
    return list(zip(made, ray.get([one.start.remote() for one in made]), strict=True))


def _free() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0))


def _runs(pid: int) -> bool:
    from pathlib import Path

    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_what_the_killed_had_comes_back_and_what_the_living_have_stays(ray_started: None) -> None:
    import ray
    from ray.util import placement_group, remove_placement_group

    slots = _free()
    own = placement_group([{"CPU": 1}])
    ray.get(own.ready())
    (killed, killed_pid), (living, living_pid) = _controllers(2)
    assert _eventually(lambda: _free() == slots - 3)
    assert (free_placement_groups(), end_cleaners()) == (0, 0)
    ray.kill(killed)
    time.sleep(3)
    assert _free() == slots - 3  # what Ray leaves by itself
    with orphans_freed():
        assert _eventually(lambda: _free() == slots - 2 and not _runs(killed_pid))
    assert _runs(living_pid)
    ray.kill(living)
    assert _eventually(lambda: free_placement_groups() == 1)
    assert _eventually(lambda: end_cleaners() == 0 and not _runs(living_pid))
    remove_placement_group(own)
    assert _eventually(lambda: _free() == slots)
