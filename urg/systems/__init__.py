"""Every system that is compared, behind one protocol (`protocol.py`). A new one: a file, a line in _TABLE, a test."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from urg.systems.folder import FOLDERS, require_known
from urg.systems.longest import longest
from urg.systems.oracle import oracle
from urg.systems.protocol import (
    FUSING,
    KINDS,
    Answer,
    FusedBy,
    Fuser,
    Fusion,
    Kind,
    Needs,
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


@dataclass(frozen=True)
class _Lazy:
    """The builder `name` of a module of this package, imported when it is needed: those with models load torch."""

    module: str
    name: str

    def found(self) -> Builder:
        """The builder itself."""
        builder: Builder = getattr(importlib.import_module(f"{__name__}.{self.module}"), self.name)
        return builder

    def __call__(self, setup: Setup) -> System:
        return self.found()(setup)


# System → what builds it, and what its answers depend on; in the order of tables.
_TABLE: dict[str, tuple[Builder, Needs]] = {
    "random": (random, Needs(settings=("seed",))),
    "longest": (longest, Needs()),
    "mlm_scoring": (_Lazy("mlm_scoring", "mlm_scoring"), Needs(("mlm_scoring",))),
    "reward_model": (_Lazy("reward_model", "reward_model"), Needs(("reward_model",))),
    "simcls": (_Lazy("simcls", "simcls"), Needs(("simcls",))),
    "summareranker": (_Lazy("summareranker", "summareranker"), Needs(("summareranker",))),
    "pair_ranker": (_Lazy("pair_ranker", "pair_ranker"), Needs(("pair_ranker",))),
    "pair_ranker_wins": (_Lazy("pair_ranker", "pair_ranker_wins"), Needs(("pair_ranker",))),
    "pair_ranker_bubble": (_Lazy("pair_ranker", "pair_ranker_bubble"), Needs(("pair_ranker",))),
    "judge_rank": (_Lazy("judge", "judge_rank"), Needs(("judge",), ("seed",))),
    "urg_rank": (urg_rank, Needs(settings=("model",))),
    "simcls_gen": (_Lazy("simcls", "simcls_gen"), Needs(("simcls", "gen_fuser"), FUSING)),
    "summareranker_gen": (_Lazy("summareranker", "summareranker_gen"), Needs(("summareranker", "gen_fuser"), FUSING)),
    "llm_blender": (_Lazy("pair_ranker", "llm_blender"), Needs(("pair_ranker", "gen_fuser"), FUSING)),
    "judge_fuse": (_Lazy("judge", "judge_fuse"), Needs(("judge",), ("seed",))),
    "urg_random_k": (urg_random_k, Needs(settings=("model", "seed", *FUSING))),
    "urg": (urg, Needs(settings=("model", *FUSING))),
    "imported": (_Lazy("imported", "imported"), Needs(("imported",))),
    "oracle": (oracle, Needs()),
}
SYSTEMS: dict[str, Builder] = {name: build for name, (build, _) in _TABLE.items()}
NEEDS: dict[str, Needs] = {name: needs for name, (_, needs) in _TABLE.items()}
"""What each depends on. A system that is not in it is taken to depend on everything."""


def about(build: Builder) -> str:
    """What a system is, in one sentence: the first line of its builder's docstring."""
    own = build.found() if isinstance(build, _Lazy) else build
    return (own.__doc__ or "").split("\n")[0]


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
    "FOLDERS", "FUSING", "KINDS", "NEEDS", "SYSTEMS", "Answer", "FusedBy", "Fuser", "Fusion", "Kind", "Needs", "Ranked",
    "Ranker", "Scores", "Setup", "System", "SystemUnavailable", "about", "build_systems",
]  # fmt: skip
