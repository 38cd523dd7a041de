"""The errors a user can mend.

    UserError            bad input, bad configuration, a missing file: one sentence that names the thing and the mend
    └── RowError         one row of a data file is unusable; carries the reason's code, for the quarantine

Everything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is unusable. The message is one sentence that names the thing and how to mend it."""


class RowError(UserError):
    """One row is unusable. `reason` is a short stable code (such as `bad_json`) that manifests count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for use within a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
