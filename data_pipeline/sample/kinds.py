"""All kinds of instruction of the generated corpus, and how a question is drawn for one split and for no other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

from data_pipeline.sample.lists import order, select
from data_pipeline.sample.tasks import Task, lookup, moves, notes, sums

KINDS: dict[str, Callable[[Random], Task]] = {
    "lookup": lookup,
    "moves": moves,
    "sums": sums,
    "notes": notes,
    "order": order,
    "select": select,
}
"""Each kind of instruction by name; a row takes one of them with equal chances."""

# Sixteenths of all facts: what one group can draw can never come up in another.
_GROUPS = {"train": range(10), "dev": range(10, 12), "test": range(12, 14), "pretraining": range(14, 16)}


def draw_task(group: str, rng: Random) -> tuple[str, Task]:
    """(kind, task) on facts that only this group can have: "train", "dev", "test", or "pretraining"."""
    while True:
        kind = rng.choice(tuple(KINDS))
        task = KINDS[kind](rng)
        if hashlib.blake2b(task.context.encode()).digest()[0] % 16 in _GROUPS[group]:
            return kind, task
