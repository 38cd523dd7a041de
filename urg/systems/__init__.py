"""Every system that is compared, behind one protocol (`protocol.py`). A new one: a file, a line in SYSTEMS, a test."""

from __future__ import annotations

from collections.abc import Callable

from urg.systems.longest import longest
from urg.systems.oracle import oracle
from urg.systems.protocol import (
    KINDS,
    Answer,
    FusedBy,
    Fuser,
    Fusion,
    Kind,
    Ranked,
    Ranker,
    Scores,
    Setup,
    System,
    SystemUnavailable,
)
from urg.systems.random import random
from urg.systems.single import single_models
from urg.systems.urg import urg, urg_rank

SYSTEMS: dict[str, Callable[[Setup], System]] = {
    "random": random,
    "longest": longest,
    "urg_rank": urg_rank,
    "urg": urg,
    "oracle": oracle,
}


def build_systems(setup: Setup) -> tuple[list[System], dict[str, str]]:
    """Every single model and each system of the table that `setup` allows; and the reason for each that it does not."""
    systems = single_models(setup, taken=frozenset(SYSTEMS))
    unavailable: dict[str, str] = {}
    for name, build in SYSTEMS.items():
        try:
            systems.append(build(setup))
        except SystemUnavailable as reason:
            unavailable[name] = str(reason)
    return systems, unavailable


__all__ = [
    "KINDS", "SYSTEMS", "Answer", "FusedBy", "Fuser", "Fusion", "Kind", "Ranked", "Ranker", "Scores", "Setup", "System",
    "SystemUnavailable", "build_systems",
]  # fmt: skip
