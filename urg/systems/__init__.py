"""Every system that is compared, behind one protocol (`protocol.py`). A new one: a file, a line in SYSTEMS, a test."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from urg.systems.folder import FOLDERS, require_known
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
from urg.systems.urg import urg, urg_random_k, urg_rank

Builder = Callable[[Setup], System]


def _lazy(module: str, name: str) -> Builder:
    """The builder `name` of a module of this package, imported when it is called: those with models load torch."""

    def build(setup: Setup) -> System:
        system: System = getattr(importlib.import_module(f"{__name__}.{module}"), name)(setup)
        return system

    return build


SYSTEMS: dict[str, Builder] = {
    "random": random,
    "longest": longest,
    "mlm_scoring": _lazy("mlm_scoring", "mlm_scoring"),
    "reward_model": _lazy("reward_model", "reward_model"),
    "simcls": _lazy("simcls", "simcls"),
    "summareranker": _lazy("summareranker", "summareranker"),
    "pair_ranker": _lazy("pair_ranker", "pair_ranker"),
    "pair_ranker_wins": _lazy("pair_ranker", "pair_ranker_wins"),
    "pair_ranker_bubble": _lazy("pair_ranker", "pair_ranker_bubble"),
    "judge_rank": _lazy("judge", "judge_rank"),
    "urg_rank": urg_rank,
    "simcls_gen": _lazy("simcls", "simcls_gen"),
    "summareranker_gen": _lazy("summareranker", "summareranker_gen"),
    "llm_blender": _lazy("pair_ranker", "llm_blender"),
    "judge_fuse": _lazy("judge", "judge_fuse"),
    "urg_random_k": urg_random_k,
    "urg": urg,
    "imported": _lazy("imported", "imported"),
    "oracle": oracle,
}


def build_systems(setup: Setup) -> tuple[list[System], dict[str, str]]:
    """Every single model and each system of the table that `setup` allows; and the reason for each that it does not.

    Raises UserError for a folder that is named and unusable.
    """
    require_known(setup.folders)
    systems = single_models(setup, taken=frozenset(SYSTEMS))
    unavailable: dict[str, str] = {}
    for name, build in SYSTEMS.items():
        try:
            systems.append(build(setup))
        except SystemUnavailable as reason:
            unavailable[name] = str(reason)
    return systems, unavailable


__all__ = [
    "FOLDERS", "KINDS", "SYSTEMS", "Answer", "FusedBy", "Fuser", "Fusion", "Kind", "Ranked", "Ranker", "Scores",
    "Setup", "System", "SystemUnavailable", "build_systems",
]  # fmt: skip
