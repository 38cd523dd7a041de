"""How far a pass is: a bar on a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called with how much more is done."""

    def __call__(self, more: int, /) -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show `what` from `done` to `total` of `unit`."""
    if not sys.stdout.isatty():
        yield _lines(what, total, unit, done)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda more: bar.advance(task, more)


def _lines(what: str, total: int, unit: str, done: int) -> Advance:
    """Print a line whenever another tenth is done."""
    state = {"done": done, "shown": 10 * done // max(total, 1)}

    def advance(more: int) -> None:
        state["done"] += more
        tenth = 10 * state["done"] // max(total, 1)
        if tenth > state["shown"]:
            state["shown"] = tenth
            print(f"{what}: {state['done']} of {total} {unit}", flush=True)

    return advance
