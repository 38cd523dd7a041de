"""Where no spot machine is to be had, one at the full price comes: Ray's own autoscaler is told what the clouds say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError, NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from cluster.spot_first import SpotFirst, at_full_price

ROOT = Path(__file__).parents[2]


def node_configs(name: str) -> dict[str, dict[str, Any]]:
    types = yaml.safe_load((ROOT / name).read_text())["available_node_types"]
    return {key: value["node_config"] for key, value in types.items()}


class Cloud(NodeProvider):
    """Has `spot` machines at the spot price and `all` in all; notes what it was asked for."""

    def __init__(self, spot: int, machines: int) -> None:
        super().__init__({}, "urg")
        self.spot, self.all = spot, machines
        self.made: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        for _ in range(count):
            wants_spot = "spot" in str(node_config).lower()
            if len(self.made) >= self.all or (wants_spot and self.spot < 1):
                raise NodeLaunchException("InsufficientInstanceCapacity", "none left", None)
            self.spot -= wants_spot
            self.made[f"i-{len(self.made)}"] = (node_config, tags)
        return {f"i-{len(self.made) - 1}": object()}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return list(self.made)

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self.made[node_id][1]

    def is_running(self, node_id: str) -> bool:
        return True


class Ours(SpotFirst, Cloud):
    pass


def launched(provider: Cloud, config: dict[str, Any], count: int) -> NodeProviderAdapter:
    """The provider behind Ray's second autoscaler, after it was told to launch machines of the type `gpu`."""
    known = SimpleNamespace(
        get_cloud_node_config=lambda _: config,
        get_node_resources=lambda _: {},
        get_node_labels=lambda _: {},
        get_config=lambda name, default=None: {"cluster_name": "urg"}.get(name, default),
    )
    adapter = NodeProviderAdapter(provider, SimpleNamespace(get_cached_autoscaling_config=lambda: known))
    adapter._launch_nodes_by_type("gpu", count, "request")
    return adapter


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
@pytest.mark.parametrize("spot", [0, 2, 3])
def test_what_is_not_to_be_had_as_spot_is_had_at_the_full_price(name: str, spot: int) -> None:
    config = node_configs(name)["gpu"]
    provider = Ours(spot, 99)
    adapter = launched(provider, config, 3)
    assert adapter.poll_errors() == []
    assert {machine.node_type for machine in adapter.get_non_terminated().values()} == {"gpu"}
    asked = [made for made, _ in provider.made.values()]
    assert asked == [config] * spot + [at_full_price(config)] * (3 - spot)


def test_without_it_ray_would_only_hear_that_there_is_none() -> None:
    config = node_configs("cluster.yaml")["gpu"]
    (error,) = launched(Cloud(0, 99), config, 3).poll_errors()
    assert isinstance(error, LaunchNodeError)


def test_where_there_is_no_machine_at_any_price_ray_hears_it_and_those_made_stay() -> None:
    provider = Ours(1, 2)
    (error,) = launched(provider, node_configs("cluster.yaml")["gpu"], 3).poll_errors()
    assert isinstance(error, LaunchNodeError)
    assert isinstance(error.__cause__, NodeLaunchException)
    assert len(provider.made) == 2


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
def test_the_full_price_changes_nothing_else(name: str) -> None:
    configs = node_configs(name)
    assert at_full_price(configs["head"]) == configs["head"]
    spot, plain = configs["gpu"], at_full_price(configs["gpu"])
    assert "spot" in str(spot).lower()
    assert "spot" not in str(plain).lower()
    assert {key: value for key, value in plain.items() if spot[key] != value}.keys() <= {"scheduling"}
    assert spot.keys() - plain.keys() <= {"InstanceMarketOptions"}
    assert plain.get("scheduling", {}) == ({"onHostMaintenance": "TERMINATE"} if "scheduling" in spot else {})


def kubernetes_wants(monitor: CloudResourceMonitor) -> list[str]:
    """The groups of raycluster.yaml that Ray's scheduler takes for 8 workers with a GPU each."""
    manifest = yaml.safe_load((ROOT / "cluster/kubernetes/raycluster.yaml").read_text())
    manifest["spec"]["workerGroupSpecs"].reverse()  # of equal ones the scheduler takes the first
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(manifest), skip_content_hash=True)
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        disable_launch_config_check=True,
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"GPU": 1, "CPU": 1})] * 8),
        cloud_resource_availabilities=monitor.get_resource_availabilities(),
        recoverable_resource_availabilities=monitor.get_recoverable_resource_availabilities(),
    )
    launches = ResourceDemandScheduler(None).schedule(request).to_launch
    return [launch.instance_type for launch in launches for _ in range(launch.count)]


def test_on_kubernetes_the_other_group_is_taken_after_pods_that_got_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = CloudResourceMonitor()
    assert kubernetes_wants(monitor) == ["gpu-spot"] * 2
    event = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_TIMEOUT, instance_type="gpu-spot")
    monitor.notify([event])
    assert kubernetes_wants(monitor) == ["gpu-on-demand"] * 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert kubernetes_wants(monitor) == ["gpu-spot"] * 2


def test_on_kubernetes_a_waiting_pod_is_given_up_in_minutes() -> None:
    manifest = yaml.safe_load((ROOT / "cluster/kubernetes/raycluster.yaml").read_text())
    variables = {each["name"]: each["value"] for each in manifest["spec"]["autoscalerOptions"]["env"]}
    code = "from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig as Waits; "
    code += "print(Waits().allocate_status_timeout_s)"
    read = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, timeout=240)
    assert 300 <= int(read.stdout) <= 1200
