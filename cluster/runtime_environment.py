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
    "/.git",
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
    ".aws/",
    ".ssh/",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "id_rsa*",
    "id_ed25519*",
    "*_password",
)
"""What stays here, in the syntax of .gitignore: what is large, made anew, or secret. `.rayignore` has the same
lines, for who submits without this module."""
STOP_SECONDS = 900
"""How long a job may go on after `ray job stop`, to write its checkpoint; Ray's own patience is three seconds."""
COMMIT = "URG_GIT_COMMIT"
"""The job's variable for the commit that was sent: the files come without `.git`, and the run's MLflow tag needs it."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|PWD|SECRET|CREDENTIAL|JWT|CONNECTION_STRING|(?:API|ACCESS|PRIVATE)_?KEY"
    r"|TOKEN(?!S|IZ)"  # of a login: not MAX_TOKENS, nor TOKENIZERS_PARALLELISM
    r"|(?:^|_)(?:PASS|CREDS?|KEYS?)(?:_|$)|_PAT$|AUTH$"
)
_NO_SECRET_NAME = re.compile(r"_(?:FILE|PATH|DIR|MODE|LIMIT|BUDGET|COUNT|SIZE)$|^GOOGLE_APPLICATION_CREDENTIALS$")
"""Of a variable that says where a secret is, or how many tokens there may be; its value is none."""
# What urg/tracking/loggable.py refuses in a tracking uri, wherever in an argument it stands. A web server's user may be
# a token; a database's password may hold any character but @, / too, and a port is none; a query may hold a signature.
_LOGIN_IN_URL = re.compile(
    r"""https?://[^/?#\s'"]*@|[\w+.-]+://[^:/@\s'"]*:(?!\d+(?:[/?#,;]|$))[^@\s'"]*@""", re.IGNORECASE
)
_SECRET_IN_URL = re.compile(
    r"""([?&;](?:password|passwd|pwd|token|access_token|secret|api_?key|sig|signature|x-amz-[\w-]+)=)[^&\s'"]+""",
    re.IGNORECASE,
)


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
    """Raise UserError where an argument has a login or a secret in a URL: `ps` and the dashboard show arguments."""
    for argument in arguments:
        if _has_secret(argument):
            raise UserError(
                f"{_redacted(argument)} has a password or a token in it, which everybody who may see the job would "
                "read: give the server's login by --secret (for MLflow: MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD; for a PostgreSQL: PGPASSWORD)."
            )


def _has_secret(text: str) -> bool:
    return bool(_LOGIN_IN_URL.search(text) or _SECRET_IN_URL.search(text))


def _redacted(text: str) -> str:
    """`text` with dots for the login part, up to the last @, and for the secret query values of every URL in it."""
    return _SECRET_IN_URL.sub(r"\1…", re.sub(r"""(?<=://)[^\s'"]*@""", "…@", text))


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
        if _is_secret(name.upper()) or _has_secret(value):
            raise UserError(
                f"--env {name}=… looks like a secret, and its value would be shown with the job: set {name} on the "
                f"cluster's nodes and give --secret {name}, or --secret {name}=/path/to/file."
            )
        variables[name] = value
    lines_at_once = os.environ.get("PYTHONUNBUFFERED", "1")
    return {"PYTHONUNBUFFERED": lines_at_once, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | variables


def _is_secret(name: str) -> bool:
    """Whether a variable of this name, in capitals, holds a secret and not a number, a switch or a place."""
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET_NAME.search(name)
