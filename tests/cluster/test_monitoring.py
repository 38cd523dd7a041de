"""Prometheus and Grafana on a cluster's head, as far as they can be tried without a container engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
COMPOSE: dict[str, Any] = yaml.safe_load((MONITORING / "compose.yaml").read_text())
PROMETHEUS, GRAFANA = COMPOSE["services"]["prometheus"], COMPOSE["services"]["grafana"]


def mounted(service: dict[str, Any], path: str) -> Path:
    """The file on the machine that a container sees at `path`, which a folder or a file of ours must hold."""
    for source, target in (volume.split(":")[:2] for volume in service["volumes"]):
        if path == target or path.startswith(f"{target}/"):
            return Path((MONITORING / source / path.removeprefix(target).lstrip("/")).as_posix())
    raise AssertionError(f"nothing is mounted at {path}")


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
def test_prometheus_reads_the_nodes_that_ray_writes_down_in_the_heads_container(name: str) -> None:
    """By the same path inside and outside, for Ray's file is a link to one that it names by its path inside."""
    (own,) = (option for option in PROMETHEUS["command"] if option.startswith("--config.file="))
    settings = yaml.safe_load(mounted(PROMETHEUS, own.partition("=")[2]).read_text())
    ((found,),) = (job["file_sd_configs"] for job in settings["scrape_configs"])
    assert found["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    assert found["refresh_interval"]
    assert [(MONITORING / rules).exists() for rules in settings["rule_files"]] == [True]
    assert "/tmp/ray:/tmp/ray:ro" in PROMETHEUS["volumes"]
    config = yaml.safe_load((ROOT / name).read_text())
    assert "--volume /tmp/ray:/tmp/ray" in config["docker"]["head_run_options"]
    # Docker would make it for root alone, and Ray in the container is not root.
    commands = "\n".join(config["initialization_commands"])
    assert "mkdir -p /mnt/shared /tmp/ray\n" in commands
    assert "chown 1000:100 /mnt/shared /tmp/ray\n" in commands


def test_grafana_finds_prometheus_and_our_dashboard() -> None:
    targets = {each["target"]: COMPOSE["configs"][each["source"]]["content"] for each in GRAFANA["configs"]}
    texts = {Path(target).parent.name: yaml.safe_load(content) for target, content in targets.items()}
    assert {Path(target).parents[1].as_posix() for target in targets} == {"/etc/grafana/provisioning"}
    (source,) = texts["datasources"]["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = texts["dashboards"]["providers"]
    dashboard = json.loads(mounted(GRAFANA, f"{provider['options']['path']}/urg.json").read_text())
    (variable,) = (each for each in dashboard["templating"]["list"] if each["type"] == "datasource")
    assert variable["query"] == source["type"]


def test_both_listen_on_loopback() -> None:
    assert {service["network_mode"] for service in COMPOSE["services"].values()} == {"host"}
    assert "--web.listen-address=127.0.0.1:9090" in PROMETHEUS["command"]
    assert GRAFANA["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
