"""What selection could reach at most on each metric: a ceiling a text metric, and one by the judge's ranks.

`oracle_rougeL` picks each row's candidate with the best ROUGE-L, and so on for every text metric that is measured;
`oracle_judge` the one that the judge ranks first (LLM-Blender's "Oracle (ChatGPT as Ranker)"). The oracle by label is
`urg.systems.oracle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from urg.systems.protocol import Ranked, Scores

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.evaluation.judge import Judged
    from urg.evaluation.text_metrics import TextMetrics

Floats = NDArray[np.float64]
GROUP = "oracles"
"""What `--systems` calls all of them."""


@dataclass(frozen=True)
class Known:
    """Ranks by scores that are known beforehand. A row that has none is not ranked."""

    scores: dict[str, Scores]

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The scores of each row's id."""
        return [self.scores.get(row.id) for row in rows]


def oracles(rows: Sequence[TokenizedExample], text_metrics: TextMetrics, judged: Judged) -> list[Ranked]:
    """One for each text metric that some row has, and the judge's where some row was judged."""
    texts, references = [text for row in rows for text in row.texts], [row.output for row in rows for _ in row.texts]
    ends = np.cumsum([len(row.texts) for row in rows])[:-1]
    values = {name: np.split(column, ends) for name, column in text_metrics.values(texts, references).items()}
    values["judge"] = [_better_first(v.ranks_N if v else None, row) for v, row in zip(judged.rows, rows, strict=True)]
    found = {name: _defined(rows, columns) for name, columns in values.items()}
    return [Ranked(f"oracle_{name}", "ceiling", Known(scores)) for name, scores in found.items() if scores]


def _better_first(ranks_N: Floats | None, row: TokenizedExample) -> Floats:
    """Ranks as scores; NaN where the judge saw nothing of the row."""
    return np.full(len(row.texts), np.nan) if ranks_N is None else -ranks_N


def _defined(rows: Sequence[TokenizedExample], columns: Sequence[Floats]) -> dict[str, Scores]:
    """id → scores [N] of the rows that have any; a candidate without one comes behind all others."""
    pairs = [(row.id, own) for row, own in zip(rows, columns, strict=True) if not np.isnan(own).all()]
    return {row_id: np.where(np.isnan(own), np.nanmin(own) - 1, own) for row_id, own in pairs}
