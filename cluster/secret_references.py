"""Secrets by reference, on a node of the cluster: `python -m cluster.secret_references COMMAND…` runs a job's command.

`python -m cluster.submit --secret` puts this before a job's command. URG_SECRETS holds the references: `NAME` (an
environment variable that the node's Ray was started with) or `NAME=/path` (a file on the node, whose content becomes
the variable), separated by commas. Values go from there into the environment of the processes that need them, and
nowhere else.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from cluster.errors import UserError, exit_code_of

REFERENCES = "URG_SECRETS"
HOOK = "cluster.secret_references.load"
"""What Ray runs when it starts a worker process of the job."""
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:=(/[^,]+))?")


def parse(reference: str) -> tuple[str, Path | None]:
    """(variable, file or None) of `NAME` or `NAME=/path`. Raises UserError without repeating what is no path."""
    found = _REFERENCE.fullmatch(reference)
    if not found:
        name = reference.partition("=")[0]
        raise UserError(
            f"--secret {name}: give the NAME of a variable that is set on the cluster's nodes, or NAME=/absolute/path "
            "of a file there; never the value."
        )
    return found[1], Path(found[2]) if found[2] else None


def resolve(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the references in `environment` stand for. Raises UserError for one that is not there."""
    found = {}
    for reference in filter(None, environment.get(REFERENCES, "").split(",")):
        name, file = parse(reference)
        found[name] = _read(name, file) if file else environment.get(name, "")
        if not found[name]:
            where = f"the file {file} is empty" if file else "it is not set in the environment of Ray"
            raise UserError(f"secret {name} is not on the node {socket.gethostname()}: {where}.")
    return found


def load() -> None:
    """Set the secrets in this process: Ray's hook for the workers of a job."""
    environment: MutableMapping[str, str] = os.environ
    environment.update(resolve(environment))


def main() -> int:
    """Become the command in the arguments, with the secrets in its environment."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0
    load()
    os.execvp(sys.argv[1], sys.argv[1:])


def _read(name: str, file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"secret {name} is not on the node {socket.gethostname()}: {file}: {reason}.") from error


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
