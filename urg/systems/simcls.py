"""SimCLS: one encoder for input and candidates; a candidate's score is the cosine of the two. Source: Liu & Liu 2021,
with LLM-Blender's margins: gold against every candidate with margin 0, every pair with margin (j - i) / N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.tokenization import question_text
from urg.devices import moved
from urg.systems.encoder import EncoderRanker, Sequences
from urg.systems.prefixed import CANDIDATE, SOURCE, Ids
from urg.systems.protocol import FusedBy, Ranked, Scores, Setup
from urg.systems.trained import shared_ranker

if TYPE_CHECKING:
    from numpy.random import Generator

    from data_pipeline.shards import TokenizedExample


@dataclass(frozen=True)
class Margins:
    """Texts of a micro-batch, and which should be nearer to its input than which, P comparisons in all.

    Indices are int64 [P] into the sequences. weight_P: fp32, so that the sum over a row's pairs is its loss.
    """

    sequences: Sequences
    source_P: Tensor
    better_P: Tensor
    worse_P: Tensor
    margin_P: Tensor
    weight_P: Tensor
    gold_P: Tensor
    """bool [P]: the better one is the reference."""


class SimCLS(EncoderRanker):
    """The shared encoder."""

    system: ClassVar[str] = "simcls"
    weights: ClassVar[dict[str, float]] = {"gold": 1.0, "pairs": 1.0}

    @property
    def longest_sequence(self) -> int:
        """Input and candidate are encoded apart."""
        return max(self.settings.source_tokens, self.settings.candidate_tokens)

    def forward(self, sequences: Sequences) -> Tensor:
        """Unit vectors fp32 [C, D]."""
        return F.normalize(self.states(sequences)[:, 0].float(), dim=-1)

    def training_batch(self, rows: Sequence[TokenizedExample], draws: Sequence[Generator], fillers: int) -> Margins:
        """Input, candidates and reference of each row, and its comparisons."""
        ids: list[Ids] = []
        starts = []
        for row in rows:
            starts.append(len(ids))
            ids += self._row_ids(row, row.output)
        found = [_comparisons(row, start, self.settings.tasks[0]) for row, start in zip(rows, starts, strict=True)]
        real = len(rows) - fillers
        columns = np.concatenate([part * [[1, 1, 1, 1, b < real, 1]] for b, part in enumerate(found)]).T
        source, better, worse = (torch.from_numpy(column.astype(np.int64)) for column in columns[:3])
        margin, weight = (torch.from_numpy(column.astype(np.float32)) for column in columns[3:5])
        sequences = Sequences.of(ids, [[0]] * len(ids))
        return Margins(sequences, source, better, worse, margin, weight, torch.from_numpy(columns[5] > 0))

    def terms(self, output: Tensor, batch: Margins) -> dict[str, Tensor]:
        """Σ max(0, cos(worse) - cos(better) + margin), the reference's comparisons apart from the candidates'."""
        source_PD = output[batch.source_P]
        better_P, worse_P = ((source_PD * output[index]).sum(1) for index in (batch.better_P, batch.worse_P))
        loss_P = F.relu(worse_P - better_P + batch.margin_P) * batch.weight_P
        return {"gold": (loss_P * batch.gold_P).sum(), "pairs": (loss_P * ~batch.gold_P).sum()}

    def scores(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """The cosine of each candidate and the input."""
        ids = [row_ids for row in rows for row_ids in self._row_ids(row, "")]
        vectors_CD = self(moved(Sequences.of(ids, [[0]] * len(ids)), self.device))
        parts = vectors_CD.split([1 + len(row.texts) for row in rows])
        return [(part[1:] @ part[0]).double().cpu().numpy() for part in parts]

    def _row_ids(self, row: TokenizedExample, reference: str) -> list[np.ndarray]:
        """The input, the candidates, and the reference where there is one."""
        own, texts = self.settings, [*row.texts, *([reference] if reference.strip() else [])]
        source = self.texts.encode(SOURCE, [question_text(row.instruction, row.input)], own.source_tokens)
        return source + self.texts.encode(CANDIDATE, texts, own.candidate_tokens)


def _comparisons(row: TokenizedExample, start: int, label: str) -> np.ndarray:
    """[P, 6]: source, better, worse, margin, weight, gold. start: index of the row's input among the sequences."""
    n, quality = len(row.texts), row.scores[label]
    found: list[tuple[float, ...]] = []
    if row.output.strip():
        found += [(start, start + 1 + n, start + 1 + i, 0.0, 1.0 / n, 1) for i in range(n)]
    order = [i for i in np.argsort(-quality, kind="stable") if not np.isnan(quality[i])]
    for i, better in enumerate(order):
        for j in range(i + 1, len(order)):
            if quality[better] > quality[order[j]]:  # equal ones are not to be told apart
                found.append((start, start + 1 + better, start + 1 + order[j], (j - i) / len(order), 1.0, 0))
    return np.array(found, dtype=np.float64).reshape(-1, 6)


def simcls(setup: Setup) -> Ranked:
    """SimCLS's top candidate."""
    return Ranked("simcls", "ranker", shared_ranker(setup, SimCLS))


def simcls_gen(setup: Setup) -> FusedBy:
    """SimCLS's best candidates, fused by GenFuser."""
    from urg.systems.gen_fuser import shared_fuser

    return FusedBy("simcls_gen", ranker=shared_ranker(setup, SimCLS), fuser=shared_fuser(setup))
