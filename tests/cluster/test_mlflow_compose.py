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


def test_who_reads_the_passwords_may_read_everybodys_files() -> None:
    """A file that only its maker may read is in the container what it is outside, whatever the maker's number."""
    assert SERVICE["user"] == "root"
