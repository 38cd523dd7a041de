"""The error a user can mend, and how a command ends with it. This package shares no code with the others."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave is unusable, or the cluster is. One sentence that names the thing and the mend."""


def exit_code_of(main: Callable[[], int]) -> int:
    """What the process should end with: `main`'s result, or 2 after a `UserError`, which becomes a line on stderr."""
    try:
        return main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
