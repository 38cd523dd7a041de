"""Made-up rows, a stub of the ensemble and a stub of a prepared set, for the tests of evaluation and report; and the
logits of a training pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.shards import TokenizedExample
from urg.ensemble import Fused, Query, Ranking
from urg.model import Output

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch"]
NO_TOKENS = np.zeros(0, dtype=np.int32)


def logits(output: Output) -> tuple[Tensor, Tensor | None]:
    """p's and q's logits [B, T, V] of a pass in which all target tokens were real."""
    rows = len(output.has_last_B)
    p, q = (
        None if states is None else output.head(states).unflatten(0, (rows, -1))
        for states in (output.p_states_PD, output.q_states_PD)
    )
    return p, q


def row(
    row_id: str,
    texts: Sequence[str],
    models: Sequence[str] | None = None,
    output: str = "",
    instruction: str = "say it",
    **scores: Sequence[float],
) -> TokenizedExample:
    names = tuple(models or (f"model-{index}" for index in range(len(texts))))
    arrays = {name: np.array(values, dtype=np.float64) for name, values in scores.items()}
    no_ids = tuple(NO_TOKENS for _ in texts)
    return TokenizedExample(
        row_id, instruction, "", output, names, tuple(texts), arrays, None, NO_TOKENS, no_ids, NO_TOKENS
    )


def random_rows(count: int, models: int = 4, seed: int = 0, label: str = "quality") -> list[TokenizedExample]:
    """Rows whose candidates hold a random share of the reference's words; the label is that share."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        reference = random.permutation(WORDS)
        right = random.random((models, len(WORDS))) < random.random((models, 1))
        texts = [" ".join(np.where(mask, reference, "wrong").tolist()) for mask in right]
        made.append(row(f"row/{index}", texts, output=" ".join(reference), **{label: right.mean(axis=1)}))
    return made


@dataclass
class StubEnsemble:
    """Ranks by how few words of a candidate are "wrong", with noise if it is given; fuses the top k word by word."""

    k: int = 2
    noise: float = 0.0
    writes: bool = True
    calls: list[dict[str, Any]] = field(default_factory=list)

    def rank_batch(self, queries: Sequence[Query]) -> list[Ranking]:
        return [self._ranking(query) for query in queries]

    def rank_and_fuse_batch(
        self,
        queries: Sequence[Query],
        k: int | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Fused]:
        self.calls.append({"queries": len(queries), "num_beams": num_beams, "max_new_tokens": max_new_tokens})
        return [self._fused(query) for query in queries]

    def _ranking(self, query: Query) -> Ranking:
        jitter = np.random.default_rng(sum(map(ord, "".join(query.candidates)))).normal(size=len(query.candidates))
        right = [sum(word != "wrong" for word in text.split()) for text in query.candidates]
        raw = np.exp(np.array(right) * 0.2 + self.noise * jitter)
        scores = tuple((raw / raw.sum()).tolist())
        return Ranking(scores=scores, order=tuple(np.argsort(-raw, kind="stable").tolist()))

    def _fused(self, query: Query) -> Fused:
        ranking = self._ranking(query)
        used = ranking.order[: self.k]
        words = (
            set(column) - {"wrong"} or {"wrong"}
            for column in zip(*(query.candidates[i].split() for i in used), strict=False)
        )
        return Fused(text=" ".join(sorted(word)[0] for word in words), ranking=ranking, used=used)


@dataclass
class StubShards:
    """What `urg.evaluate` reads of a ShardSet."""

    rows: list[TokenizedExample]
    manifest: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path("/nowhere/prepared")

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for made in self.rows for name in made.scores}))

    def split(self, name: str) -> StubSplit:
        if name != "test":
            raise UserError(f"{self.folder} has no split {name}; it has test.")
        return StubSplit(self.rows, self.score_names)


@dataclass
class StubSplit:
    rows: list[TokenizedExample]
    score_names: tuple[str, ...]
    name: str = "test"

    @property
    def ids(self) -> list[str]:
        return [made.id for made in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenizedExample:
        return self.rows[index]

    def has_label(self, name: str) -> int:
        if name not in self.score_names:
            raise UserError(f"No row of split test has the score {name}; rank by one that is there (quality)")
        return len(self.rows)
