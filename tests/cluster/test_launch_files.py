"""cluster.yaml and cluster/gcp.yaml as Ray's own launcher reads them, and what they must not do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
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
def test_our_provider_is_rays_own_and_gets_the_settings_that_ray_would_give_it(name: str) -> None:
    """Ray fills in what a file leaves out for its own providers only, and reads some of it without a default."""
    config = loaded(name)
    module, _, cloud = config["provider"]["module"].rpartition(".")
    assert (config["provider"]["type"], module) == ("external", "cluster.spot_first")
    native = prepare_config(config | {"provider": {"type": cloud.lower()}})
    ours = prepare_config(config)
    assert native.keys() - ours.keys() == set()
    assert {key for key in ours if ours[key] != native[key]} == {"provider"}


@pytest.mark.parametrize("name", FILES)
def test_the_head_computes_nothing_and_the_workers_are_spot_machines(name: str) -> None:
    types = loaded(name)["available_node_types"]
    assert types["head"]["max_workers"] == 0
    assert "GPU" not in types["head"]["resources"]
    assert "spot" not in str(types["head"]["node_config"]).lower()
    assert "spot" in str(types["gpu"]["node_config"]).lower()


@pytest.mark.parametrize("name", FILES)
def test_every_machine_may_pull_the_image_and_logs_in_to_the_registry(name: str) -> None:
    config = loaded(name)
    gpu = config["available_node_types"]["gpu"]["node_config"]
    assert gpu.get("IamInstanceProfile") or gpu.get("serviceAccounts")  # Ray gives its own to the head only
    logins = [
        line for line in config["initialization_commands"] if "docker login" in line or "configure-docker" in line
    ]
    assert len(logins) == 1


@pytest.mark.parametrize("name", FILES)
def test_workers_watch_for_the_end_of_their_machine(name: str) -> None:
    config = loaded(name)
    watch = config["worker_start_ray_commands"][-1]
    assert f"python -m cluster.drain_on_notice {config['provider']['module'].rpartition('.')[2].lower()} " in watch
    # As Ray sends it: after variables, in brackets. It must not keep the launcher waiting.
    for line in config["worker_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", f"true && (export A=b; {line})"], check=True)
    assert re.search(r"&( sleep 1)?$", watch)


@pytest.mark.parametrize("name", FILES)
def test_the_shared_folder_does_not_believe_its_cache_for_long(name: str) -> None:
    (mount,) = (line for line in loaded(name)["initialization_commands"] if "mount -t nfs" in line)
    found = re.search(r"[ ,]actimeo=(\d+)[ ,]", mount)
    assert found
    assert int(found[1]) <= 30


@pytest.mark.parametrize(
    ("vendor", "driver_after", "code"), [("0x10de", 0, 0), ("0x10de", 3, 0), ("0x10de", 10**6, 124), ("0x1af4", 0, 0)]
)
def test_google_clouds_driver_is_waited_for_before_ray_looks_for_gpus(
    vendor: str, driver_after: int, code: int, tmp_path: Path
) -> None:
    """Ray starts the container after these commands, with the GPUs that nvidia-smi then shows."""
    first = loaded("cluster/gcp.yaml")["initialization_commands"][0]
    device = tmp_path / "devices" / "0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    tries = tmp_path / "tries"
    for tool, script in (
        ("nvidia-smi", f'echo >> {tries}; [ "$(wc -l < {tries})" -gt {driver_after} ]'),
        ("sleep", ""),
    ):
        (tmp_path / tool).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / tool).chmod(0o755)
    command = first.replace("/sys/bus/pci", str(tmp_path)).replace("timeout 900", "timeout 1")
    done = subprocess.run(
        ["bash", "-c", f"true && (export A=b; {command})"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd="/"
    )
    assert done.returncode == code
    if not code:
        asked = len(tries.read_text()) if tries.exists() else 0
        assert asked == (driver_after + 1 if vendor == "0x10de" else 0)


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("there", [(), ("docker",), ("docker", "nvidia-container-runtime", "nvidia-ctk")])
def test_google_clouds_machine_gets_what_it_lacks_of_docker_and_nvidias_runtime(
    there: tuple[str, ...], gpu: bool, tmp_path: Path
) -> None:
    commands = [
        line for line in loaded("cluster/gcp.yaml")["initialization_commands"] if "docker" in line or "nvidia-c" in line
    ][:3]
    device = tmp_path / "devices" / "0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n" if gpu else "0x1af4\n")
    tools, done = tmp_path / "tools", tmp_path / "done"
    note = f'echo "$(basename "$0") $*" >> {done}; '
    for name in ("apt-get", "usermod", "gpg", "systemctl"):
        tool(tools, name, note)
    runs = f"[ -e {tmp_path}/configured ] && echo nvidia-container-runtime || echo runc"
    made = {
        "docker.io": [("docker", runs)],
        "nvidia-container-toolkit": [
            ("nvidia-container-runtime", ""),
            ("nvidia-ctk", f"{note} touch {tmp_path}/configured"),
        ],
    }
    scripts = dict(each for parts in made.values() for each in parts)
    for name in there:
        tool(tools, name, scripts[name])
    if "nvidia-ctk" in there:
        (tmp_path / "configured").touch()
    for name, parts in made.items():  # what a package brings is there once it has been installed
        for part, script in parts:
            tool(tmp_path / name, part, script)
    tool(
        tools,
        "apt-get",
        f'{note} for p in {" ".join(made)}; do case "$*" in *"$p"*) cp {tmp_path}/$p/* {tools}/ ;; esac; done',
    )
    tool(tools, "sudo", 'exec "$@"')
    tool(tools, "tee", "cat > /dev/null")
    tool(tools, "curl", "echo key")
    for name in ("basename", "cat", "cp", "grep", "id", "touch", "sh"):
        (tools / name).symlink_to(shutil.which(name) or name)
    for _ in range(2):  # the second time there is nothing to do
        before = done.read_text() if done.exists() else ""
        for command in commands:
            line = command.replace("/sys/bus/pci", str(tmp_path))
            subprocess.run(["/bin/bash", "-c", f"true && (export A=b; {line})"], env={"PATH": str(tools)}, check=True)
    said = done.read_text() if done.exists() else ""
    assert said == before
    assert ("install -y -qq docker.io" in said) == ("docker" not in there)
    assert ("usermod -aG docker" in said) == ("docker" not in there)
    lacks = gpu and "nvidia-ctk" not in there
    assert ("install -y -qq nvidia-container-toolkit" in said) == lacks
    assert ("systemctl restart docker" in said) == lacks


def test_google_clouds_image_is_of_a_family_that_names_its_driver() -> None:
    """The families without that suffix are gone."""
    for kind in loaded("cluster/gcp.yaml")["available_node_types"].values():
        (disk,) = kind["node_config"]["disks"]
        family = disk["initializeParams"]["sourceImage"].rpartition("/family/")[2]
        assert re.fullmatch(r"common-cu\d+-ubuntu-2204-nvidia-\d+", family)


def test_google_clouds_head_has_an_account_of_ours() -> None:
    """Ray's own may start a machine as any account of the project. What it may is read in Ray's source, which cannot be
    imported without Google's library."""
    commands = (ROOT / "cluster" / "README.md").read_text()
    types = loaded("cluster/gcp.yaml")["available_node_types"]
    accounts = {
        name: [each["email"].partition("@")[0] for each in kind["node_config"]["serviceAccounts"]]
        for name, kind in types.items()
    }
    assert accounts == {"head": ["urg-head"], "gpu": ["urg-worker"]}
    assert "for ACCOUNT in urg-head urg-worker; do" in commands
    assert set(re.findall(r"--role (roles/\S+)", commands)) == {
        "roles/artifactregistry.reader",
        "roles/compute.instanceAdmin.v1",
        "roles/iam.serviceAccountUser",
    }
    assert (
        "add-iam-policy-binding urg-worker@$PROJECT.iam.gserviceaccount.com --role roles/iam.serviceAccountUser"
        in commands
    )
    source = (Path(ray.__file__).parent / "autoscaler" / "_private" / "gcp" / "config.py").read_text()
    (given,) = re.findall(r"^DEFAULT_SERVICE_ACCOUNT_ROLES = \[(.*?)\]", source, re.M | re.S)
    roles = re.findall(r'"roles/([\w.]+)"', given)
    assert len(roles) == 4
    told = (ROOT / "SECURITY.md").read_text()
    assert [role for role in roles if f"`{role}`" not in told] == []


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_the_token_and_the_dashboard_stays_at_home(name: str) -> None:
    config = loaded(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    (there,) = config["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={there}" in config["docker"]["run_options"]
    assert "--security-opt no-new-privileges" in config["docker"]["run_options"]
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
