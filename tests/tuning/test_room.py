"""How many runs a cluster holds, and what it says where it holds none."""

from __future__ import annotations

import pytest

from data_pipeline.errors import UserError
from tuning.room import runs_at_once
from urg.config import EngineConfig


@pytest.mark.parametrize(
    ("nodes", "engine", "wanted", "runs"),
    [
        ([{"CPU": 2.0}], EngineConfig(workers=1), None, 2),
        ([{"CPU": 2.0}], EngineConfig(workers=2), None, 1),
        ([{"CPU": 3.0}, {"CPU": 3.0}], EngineConfig(workers=1, cpus_per_worker=2), None, 2),  # 6 CPUs, not 3 runs
        ([{"CPU": 64.0, "GPU": 8.0}] * 2, EngineConfig(workers=8, use_gpu=True, cpus_per_worker=4), None, 2),
        ([{"CPU": 16.0, "GPU": 8.0}], EngineConfig(workers=2, use_gpu=True, cpus_per_worker=4), None, 2),
        ([{"CPU": 8.0}], EngineConfig(workers=1), 3, 3),
        ([{"CPU": 2.0}], EngineConfig(workers=1), 3, 2),
        ([{"CPU": 2.0}, {"CPU": 2.0}], EngineConfig(workers=8), 3, 3),  # a cluster that grows
    ],
)
def test_whole_workers_fit_on_each_node(
    nodes: list[dict[str, float]], engine: EngineConfig, wanted: int | None, runs: int
) -> None:
    assert runs_at_once(nodes, engine, wanted) == runs


def test_a_head_without_workers_gets_what_is_asked_for_where_the_cluster_may_grow() -> None:
    """As `cluster.yaml` starts: a head without a GPU, and no worker until one is asked for."""
    engine, head = EngineConfig(workers=8, use_gpu=True, cpus_per_worker=4), {"CPU": 8.0}
    assert runs_at_once([head], engine, 4, grows=True) == 4
    for wanted, grows in ((None, True), (4, False)):
        with pytest.raises(UserError, match=r"room for 0 .*give --concurrency on one that grows"):
            runs_at_once([head], engine, wanted, grows)


def test_no_room_says_what_is_needed_and_what_there_is() -> None:
    engine = EngineConfig(workers=2, use_gpu=True, cpus_per_worker=4)
    with pytest.raises(UserError, match=r"2 workers of 4 CPU, 1 GPU each, .* room for 1 \(nodes: 8 CPU, 1 GPU\)"):
        runs_at_once([{"CPU": 8.0, "GPU": 1.0, "memory": 1e9}], engine, None)
