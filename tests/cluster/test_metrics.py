"""What a training publishes is there for Prometheus, under the names that the dashboard asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]
PUBLISH = """
import sys, time
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
from urg.tracking import ray_metrics
ray_metrics.publish({"train/tokens_per_s": 1234.5}, "mine")
ray_metrics.checkpoint_written("mine")
sys.stdin.read()  # a process that ends takes its figures along
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_figures_reach_prometheus(two_nodes: LocalCluster) -> None:
    own = os.environ | two_nodes.environment() | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", PUBLISH], env=own, cwd=ROOT, stdin=subprocess.PIPE)
    try:
        found = wait_for_figures(two_nodes)
    finally:
        process.communicate(timeout=120)
    (tokens,) = (line for line in found if line.startswith("ray_urg_tokens_per_second"))
    assert 'run="mine"' in tokens
    assert tokens.endswith(" 1234.5")
    (written,) = (line for line in found if line.startswith("ray_urg_checkpoint_time_seconds"))
    assert abs(float(written.split()[-1]) - time.time()) < 120


def wait_for_figures(cluster: LocalCluster) -> list[str]:
    """Our lines of all that Prometheus would scrape, found as it finds it: by the file that the head writes."""
    for _ in range(120):
        found = [line for target in targets(cluster) for line in scraped(target) if line.startswith("ray_urg_")]
        if len(found) >= 2:
            return found
        time.sleep(0.5)
    raise AssertionError("no figures within a minute")


def targets(cluster: LocalCluster) -> list[str]:
    file = cluster.folder / cluster.head.address / "prom_metrics_service_discovery.json"
    return [target for group in json.loads(file.read_text()) for target in group["targets"]] if file.exists() else []


def scraped(target: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
            return str(answer.read().decode()).splitlines()
    except OSError:
        return []
