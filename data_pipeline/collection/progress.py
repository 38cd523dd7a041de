"""How far the asking is: a bar for each model on a terminal, elsewhere a plain line whenever another tenth is done."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich import progress as rich_progress


class Progress:
    """Shown on stderr while its block runs. totals: by model, the prompts to ask it."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals = {name: total for name, total in totals.items() if total}
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._bars: rich_progress.Progress | None = None
        self._tasks: dict[str, rich_progress.TaskID] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and self._totals:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            failed = TextColumn("{task.fields[failed]} failed")
            self._bars = Bars(*columns, failed, TimeRemainingColumn(), console=Console(stderr=True))
            self._tasks = {name: self._bars.add_task(name, total=of, failed=0) for name, of in self._totals.items()}
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def advance(self, name: str, failed: bool) -> None:
        """One more prompt of the model is answered, or has failed for good."""
        self._done[name] += 1
        self._failed[name] += failed
        if self._bars is not None:
            self._bars.update(self._tasks[name], advance=1, failed=self._failed[name])
            return
        done, of = self._done[name], self._totals[name]
        if 10 * done // of > 10 * (done - 1) // of:
            print(f"{name}: {done} of {of}, {self._failed[name]} failed", file=sys.stderr, flush=True)
