"""How far a slow part is, on stderr."""

from __future__ import annotations

import sys


class Progress:
    """Shows on stderr how far a slow part is: rewriting one line on a terminal, elsewhere a line for each quarter."""

    def __init__(self) -> None:
        self._quarter = (-1, "")

    def __call__(self, what: str, done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done} of {of}", end="\n" if done >= of else "", file=sys.stderr, flush=True)
            return
        quarter = (4 * done // max(of, 1), what)
        if quarter != self._quarter:
            self._quarter = quarter
            print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)
