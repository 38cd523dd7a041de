"""What a job is started with: the files it gets, its environment variables, and where its secrets are.

A secret is given by reference. Its value is on the cluster's nodes already, in an environment variable or a file; the
job's description, which the dashboard and the Jobs API show to everybody with the token, holds the name only.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.secret_references import HOOK, REFERENCES, parse

EXCLUDES = (
    "/.git/",
    "/.venv/",
    "/venv/",
    "/data/",
    "/runs/",
    "/mlruns/",
    "/build/",
    "/dist/",
    "/node_modules/",
    "__pycache__/",
    "*.egg-info/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    ".env",
    ".env.*",
    ".netrc",
    "*.pem",
    "*.key",
    "id_rsa*",
    "id_ed25519*",
    "*_password",
)
"""What stays here, in the syntax of .gitignore: what is large, made anew, or secret."""
STOP_SECONDS = 900
"""How long a job may go on after `ray job stop`, to write its checkpoint; Ray's own patience is three seconds."""
COMMIT = "URG_GIT_COMMIT"
"""The job's variable for the commit that was sent: the files come without `.git`, and the run's MLflow tag needs it."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_WORDS = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS", "KEY", "APIKEY"}
_LOGIN_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def runtime_environment(folder: Path, settings: Sequence[str], secrets: Sequence[str], module: str) -> dict[str, Any]:
    """Ray's runtime_env for a job that runs `module` from `folder`.

    settings: KEY=VALUE. secrets: NAME or NAME=/path/on/the/nodes. Raises UserError where one of them is unusable.
    """
    environment: dict[str, Any] = {
        "working_dir": str(_checked_folder(folder, module)),
        "excludes": list(EXCLUDES),
        "env_vars": _commit(folder) | _variables(settings),
    }
    if secrets:
        for secret in secrets:
            parse(secret)
        environment["env_vars"][REFERENCES] = ",".join(secrets)
        environment["worker_process_setup_hook"] = HOOK
    return environment


def require_no_secret(arguments: Sequence[str]) -> None:
    """Raise UserError where an argument has a password in a URL: `ps` and the dashboard show arguments."""
    for argument in arguments:
        if _LOGIN_IN_URL.search(argument):
            raise UserError(
                f"{_LOGIN_IN_URL.sub('://…@', argument)} has a password in it, which everybody who may see the job "
                "would read: give the server's login by --secret (for MLflow: MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD)."
            )


def _checked_folder(folder: Path, module: str) -> Path:
    package = module.split(".")[0]
    if not (folder / package).is_dir():
        raise UserError(
            f"the working directory {folder} has no package {package}: run it in a checkout of the project."
        )
    if not module_file(folder, module).is_file():
        raise UserError(f"the working directory {folder} has no {module}: this version of the project lacks it.")
    return folder.absolute()


def module_file(folder: Path, module: str) -> Path:
    """Where the source of `module` is in a checkout."""
    return folder.joinpath(*module.split(".")).with_suffix(".py")


def _commit(folder: Path) -> dict[str, str]:
    """The commit of a checkout, with a `+` where it has uncommitted changes, as a variable; none outside a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {COMMIT: said}


def _variables(settings: Sequence[str]) -> dict[str, str]:
    variables = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UserError(f"--env {name}: give KEY=VALUE, with a KEY of letters, digits and underscores.")
        if _SECRET_WORDS & set(name.upper().split("_")) or _LOGIN_IN_URL.search(value):
            raise UserError(
                f"--env {name}=… looks like a secret, and its value would be shown with the job: set {name} on the "
                f"cluster's nodes and give --secret {name}, or --secret {name}=/path/to/file."
            )
        variables[name] = value
    lines_at_once = os.environ.get("PYTHONUNBUFFERED", "1")
    return {"PYTHONUNBUFFERED": lines_at_once, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | variables
