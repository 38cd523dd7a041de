"""URG itself: its top candidate (`urg_rank`) and its fused text (`urg`), from one pass over a row; and the text that it
writes from candidates that chance chose (`urg_random_k`), for the ablation `w/o ranking`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from urg.systems.protocol import FusedBy, Fusion, Progress, Ranked, Scores, Setup, SystemUnavailable, silent
from urg.systems.random import RandomScores

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.ensemble import Ensemble, Fused, Query

ROWS_PER_CALL = 64
RANKS_ONLY = "the URG model was trained to rank alone (loss.generation false)"


@dataclass
class UnifiedPass:
    """A ranker and a fuser in one: the model ranks and fuses a row in one call; the result is kept by the row's id."""

    ensemble: Ensemble
    num_beams: int = 4
    max_new_tokens: int | None = None
    progress: Progress = silent
    rank_only: bool = False
    _done: dict[str, Fused] = field(default_factory=dict)

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The model's attention scores."""
        return [np.array(fused.ranking.scores, dtype=np.float64) for fused in self._run(rows)]

    def fuse(self, rows: Sequence[TokenizedExample], scores: Sequence[Scores]) -> list[Fusion]:
        """`scores` are those that `rank` returned: the model selects by them in the same pass."""
        return [Fusion(fused.text, tuple(fused.used)) for fused in self._run(rows)]

    def _run(self, rows: Sequence[TokenizedExample]) -> list[Fused]:
        from urg.ensemble import Query

        todo = [row for row in rows if row.id not in self._done]
        what = "URG ranks" if self.rank_only else "URG ranks and fuses"
        for start in range(0, len(todo), ROWS_PER_CALL):
            part = todo[start : start + ROWS_PER_CALL]
            answered = self._answered([Query(row.instruction, tuple(row.texts), row.input) for row in part])
            self._done.update(zip((row.id for row in part), answered, strict=True))
            self.progress(what, start + len(part), len(todo))
        return [self._done[row.id] for row in rows]

    def _answered(self, queries: Sequence[Query]) -> list[Fused]:
        from urg.ensemble import Fused

        if self.rank_only:
            return [Fused("", ranking, ()) for ranking in self.ensemble.rank_batch(queries)]
        return self.ensemble.rank_and_fuse_batch(queries, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens)


@dataclass
class FusesTheBest:
    """URG as a fuser alone: it writes from the K best candidates by somebody else's scores."""

    ensemble: Ensemble
    num_beams: int = 4
    max_new_tokens: int | None = None

    def fuse(self, rows: Sequence[TokenizedExample], scores: Sequence[Scores]) -> list[Fusion]:
        """K is the model's own, without its gap: the scores are not. The fused text does not depend on the order of the
        K."""
        from urg.ensemble import Query

        k = self.ensemble.k
        chosen = [np.argsort(-own, kind="stable")[:k].tolist() for own in scores]
        queries = [
            Query(row.instruction, tuple(row.texts[i] for i in own), row.input)
            for row, own in zip(rows, chosen, strict=True)
        ]
        fused = self.ensemble.rank_and_fuse_batch(
            queries, k=k, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens
        )
        return [Fusion(made.text, tuple(own)) for made, own in zip(fused, chosen, strict=True)]


def urg_rank(setup: Setup) -> Ranked:
    """URG's top candidate."""
    return Ranked("urg_rank", "ranker", unified_pass(setup))


def urg(setup: Setup) -> FusedBy:
    """URG's fused text."""
    both = unified_pass(setup)
    if not both.ensemble.writes:
        raise SystemUnavailable(RANKS_ONLY)
    return FusedBy("urg", ranker=both, fuser=both)


def urg_random_k(setup: Setup) -> FusedBy:
    """URG's text fused from K random candidates: what is left without its ranking."""
    if setup.ensemble is None:
        raise SystemUnavailable(setup.no_ensemble)
    if not setup.ensemble.writes:
        raise SystemUnavailable(RANKS_ONLY)
    fuser = FusesTheBest(setup.ensemble, setup.num_beams, setup.max_new_tokens)
    return FusedBy("urg_random_k", ranker=RandomScores(setup.seed), fuser=fuser)


def unified_pass(setup: Setup) -> UnifiedPass:
    """The one pass that all systems of this setup share. SystemUnavailable without a model."""
    if setup.ensemble is None:
        raise SystemUnavailable(setup.no_ensemble)
    if "urg" not in setup.shared:
        rank_only = setup.rank_only or not setup.ensemble.writes
        setup.shared["urg"] = UnifiedPass(
            setup.ensemble, setup.num_beams, setup.max_new_tokens, setup.progress, rank_only
        )
    both = setup.shared["urg"]
    assert isinstance(both, UnifiedPass)
    return both
