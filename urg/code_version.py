"""Which commit of this code is at work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMIT = "URG_GIT_COMMIT"
"""A job's variable for the commit that `cluster.submit` has sent: its files come without `.git`."""


def git_commit() -> str:
    """The commit of the code, with a `+` where it has uncommitted changes: of the checkout that was sent, or of this
    one; `unknown` outside a checkout."""
    if sent := os.environ.get(COMMIT):
        return sent
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
