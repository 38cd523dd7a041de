"""The ceiling of selection: the candidate with the best label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from urg.systems.protocol import Ranked, Scores, Setup

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample


@dataclass(frozen=True)
class Labels:
    """Scores a candidate by its label. One without is never picked; a row without any is not ranked."""

    label: str

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The labels."""
        return [self._scores(row) for row in rows]

    def _scores(self, row: TokenizedExample) -> Scores | None:
        labels = row.scores.get(self.label)
        return None if labels is None or np.isnan(labels).all() else np.asarray(labels, dtype=np.float64)


def oracle(setup: Setup) -> Ranked:
    """Best candidate by label."""
    return Ranked("oracle", "ceiling", Labels(setup.label))
