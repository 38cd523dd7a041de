"""The floor: candidates in random order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from urg.systems.protocol import Ranked, Scores, Setup

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample


@dataclass(frozen=True)
class RandomScores:
    """Uniform scores from a generator keyed by (seed, row id): the same for a row wherever it stands."""

    seed: int

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """Uniform random scores."""
        return [self.scores(row) for row in rows]

    def scores(self, row: TokenizedExample) -> Scores:
        """Those of one row."""
        digest = sha256(f"{self.seed}\n{row.id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big")).random(len(row.texts))


def random(setup: Setup) -> Ranked:
    """Random candidate, seeded."""
    return Ranked("random", "floor", RandomScores(setup.seed))
