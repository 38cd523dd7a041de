"""cluster.yaml and cluster/gcp.yaml as Ray's own launcher reads them, and what they must not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster/gcp.yaml")


def loaded(name: str) -> dict[str, Any]:
    config = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    validate_config(prepare_config(loaded(name)))


def test_ray_refuses_what_is_wrong() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(loaded("cluster.yaml") | {"max_worker": 3}))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(loaded("cluster.yaml") | {"idle_timeout_minutes": "ten"}))


@pytest.mark.parametrize("name", FILES)
def test_the_head_computes_nothing_and_spot_machines_have_a_stand_in(name: str) -> None:
    config = loaded(name)
    types = config["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert "GPU" not in types["head"]["resources"]
    spot, on_demand = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["resources"] == on_demand["resources"]  # otherwise the autoscaler would not take one for the other
    assert spot["priority"] > on_demand["priority"]
    assert "spot" in str(spot["node_config"]).lower()
    assert "spot" not in str(on_demand["node_config"]).lower()
    assert "RAY_enable_autoscaler_v2=1" in str(config["head_start_ray_commands"])  # the first one knows no priority


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_at_home(name: str) -> None:
    config = loaded(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    (there,) = config["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={there}" in config["docker"]["run_options"]
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    assert "ray-client-server" not in start


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_open_to_the_world(name: str) -> None:
    assert "0.0.0.0" not in (ROOT / name).read_text()
    config = loaded(name)
    # The group that Ray would make has port 22 open to everybody.
    for kind in config["available_node_types"].values():
        own = kind["node_config"].get("SecurityGroupIds") or kind["node_config"].get("networkInterfaces")
        assert own
    assert "security_group" not in config["provider"]
