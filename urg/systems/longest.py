"""The longest candidate: what a judge with a taste for length would pick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from urg.systems.protocol import Ranked, Scores, Setup

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample


class Lengths:
    """Scores a candidate by its characters, surrounding blanks left out."""

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The lengths of the texts."""
        return [np.array([len(text.strip()) for text in row.texts], dtype=np.float64) for row in rows]


def longest(setup: Setup) -> Ranked:
    """Longest candidate."""
    return Ranked("longest", "floor", Lengths())
