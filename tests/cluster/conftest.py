"""One real cluster of two nodes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def hub_token() -> str:
    """The value of a secret that the nodes know."""
    return "v4lue-that-nobody-may-see"


@pytest.fixture(scope="session")
def two_nodes(hub_token: str) -> Iterator[LocalCluster]:
    """Its nodes know a secret, and the head misses a failing node within three seconds."""
    quick = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "500"}
    environment = {f"RAY_health_check_{name}": value for name, value in quick.items()}
    environment |= {"HUB_TOKEN": hub_token, "RAY_metrics_report_interval_ms": "1000"}
    with LocalCluster(2, cpus=1, environment=environment) as cluster:
        yield cluster
