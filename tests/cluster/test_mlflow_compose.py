"""How cluster/mlflow/compose.yaml starts the server, as far as it can be tried without a container engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICE = yaml.safe_load((ROOT / "cluster" / "mlflow" / "compose.yaml").read_text())["services"]["mlflow"]


@pytest.mark.parametrize("missing", [None, "database_password", "store_password"])
def test_the_server_starts_with_both_passwords_or_not_at_all(missing: str | None, tmp_path: Path) -> None:
    shell, option, script = SERVICE["command"]
    for name in ("database_password", "store_password"):
        if name != missing:
            (tmp_path / name).write_text(f"of {name}")
    tool = tmp_path / "setpriv"
    tool.write_text('#!/bin/sh\necho "$PGPASSWORD, $AWS_SECRET_ACCESS_KEY, $HOME: $*"\n')
    tool.chmod(0o755)
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))  # as compose does
    done = subprocess.run(
        [shell, option, script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    if missing:
        assert done.returncode != 0
        assert done.stdout == ""
    else:
        said, _, command = done.stdout.partition(": ")
        assert said == "of database_password, of store_password, /home/mlflow"
        assert command.startswith("--reuid=mlflow --regid=mlflow --init-groups --no-new-privs mlflow server ")


def test_for_the_nodes_of_a_cluster_it_has_one_more_address_that_must_be_given() -> None:
    """And they may name it by that address: MLflow answers to private ones where it is not told to which."""
    from mlflow.server.security_utils import get_default_allowed_hosts, is_allowed_host_header

    more = yaml.safe_load((ROOT / "cluster" / "mlflow" / "for-nodes.yaml").read_text())["services"]["mlflow"]
    assert list(more) == ["ports"]
    (port,) = more["ports"]
    assert port.startswith("${MLFLOW_ADDRESS:?")
    assert port.endswith("}:5000:5000")
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" not in SERVICE["environment"]
    hosts = ("172.31.5.6:5000", "10.10.0.2:5000", "mlflow.example:5000")  # AWS's default network, gcp.yaml's, a name
    assert [is_allowed_host_header(get_default_allowed_hosts(), host) for host in hosts] == [True, True, False]


def test_who_reads_the_passwords_may_read_everybodys_files() -> None:
    """A file that only its maker may read is in the container what it is outside, whatever the maker's number."""
    assert SERVICE["user"] == "root"
