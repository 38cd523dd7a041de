"""SummaReranker: encodes input and candidate together; a mixture-of-experts head says, a task each, whether the
candidate is the best. Source: Ravaut et al. 2022; gates as Shazeer et al. 2017.

Two departures, so that a step's loss is the mean over its rows whatever the number of workers: the experts' balance is
taken over the candidates of a row, and not of a micro-batch, and by gate mass alone. With few tasks there are four
experts: with two and the best one taken, the gate would get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.tokenization import question_text
from urg.devices import moved
from urg.systems.encoder import EncoderRanker, RankerSettings, Sequences
from urg.systems.prefixed import CANDIDATE, SOURCE
from urg.systems.protocol import FusedBy, Ranked, Scores, Setup
from urg.systems.trained import shared_ranker

if TYPE_CHECKING:
    from numpy.random import Generator
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.shards import TokenizedExample

NOISE_FLOOR = 1e-2  # of the gates' noise in training


@dataclass(frozen=True)
class Verdicts:
    """Every candidate of a micro-batch with its input, and whether it is the best of its row."""

    sequences: Sequences
    row_C: Tensor
    """int64 [C]: whose candidate a sequence is."""
    best_CT: Tensor
    """fp32 [C, T]: 1 for a row's best candidate by a task's score, ties all, else 0."""
    weight_CT: Tensor
    """fp32 [C, T]: so that the sum over a row is its mean; 0 without a label."""
    weight_B: Tensor
    """fp32 [B]: 0 for a filler row, else 1."""


class MixtureHead(nn.Module):
    """A shared bottom, experts that each task mixes by a gate of its own, and a tower a task."""

    def __init__(self, width: int, tasks: int, dropout: float) -> None:
        super().__init__()
        experts = max(4, 2 * tasks)
        self.chosen = experts // 2
        self.bottom = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(experts)
        )
        self.gates = nn.ModuleList(nn.Linear(width, experts, bias=False) for _ in range(tasks))
        self.noise = nn.ModuleList(nn.Linear(width, experts, bias=False) for _ in range(tasks))
        self.towers = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))
        for layer in (*self.gates, *self.noise):
            nn.init.zeros_(layer.weight)

    def forward(self, states_CD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [C, T] and gates [C, T, E], of which the best half is not 0 and sums to 1."""
        bottom_CD = self.bottom(states_CD)
        experts_CED = torch.stack([expert(bottom_CD) for expert in self.experts], dim=1)
        gates_CTE = torch.stack([self._gate(bottom_CD, task) for task in range(len(self.towers))], dim=1)
        mixed_CTD = gates_CTE @ experts_CED
        return torch.cat([tower(mixed_CTD[:, t]) for t, tower in enumerate(self.towers)], dim=1), gates_CTE

    def _gate(self, bottom_CD: Tensor, task: int) -> Tensor:
        logits_CE = self.gates[task](bottom_CD)
        if self.training:
            spread_CE = F.softplus(self.noise[task](bottom_CD)) + NOISE_FLOOR
            logits_CE = logits_CE + torch.randn_like(logits_CE) * spread_CE
        best = logits_CE.topk(self.chosen, dim=1)
        return torch.zeros_like(logits_CE).scatter(1, best.indices, best.values.softmax(dim=1))


class SummaReranker(EncoderRanker):
    """Encoder and head."""

    system: ClassVar[str] = "summareranker"
    weights: ClassVar[dict[str, float]] = {"best": 1.0, "balance": 1e-2}

    def __init__(self, encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, settings: RankerSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        self.head = MixtureHead(self.width, len(settings.tasks), settings.dropout)

    def forward(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """fp32 logits [C, T] and gates [C, T, E]."""
        logits_CT, gates_CTE = self.head(self.states(sequences)[:, 0])
        return logits_CT.float(), gates_CTE.float()

    def training_batch(self, rows: Sequence[TokenizedExample], draws: Sequence[Generator], fillers: int) -> Verdicts:
        """Every candidate of each row."""
        real = len(rows) - fillers
        verdicts = [_verdicts(row, self.settings.tasks) for row in rows]
        best, weight = (np.concatenate(side).astype(np.float32) for side in zip(*verdicts, strict=True))
        row_C = np.repeat(np.arange(len(rows)), [len(row.texts) for row in rows])
        weight[row_C >= real] = 0.0
        weight_B = (torch.arange(len(rows)) < real).float()
        return Verdicts(
            self._sequences(rows),
            torch.from_numpy(row_C),
            torch.from_numpy(best),
            torch.from_numpy(weight),
            weight_B,
        )

    def terms(self, output: tuple[Tensor, Tensor], batch: Verdicts) -> dict[str, Tensor]:
        """Binary cross-entropy, and the squared coefficient of variation of the experts' use within each row."""
        logits_CT, gates_CTE = output
        loss_CT = F.binary_cross_entropy_with_logits(logits_CT, batch.best_CT, reduction="none")
        use_BTE = gates_CTE.new_zeros((len(batch.weight_B), *gates_CTE.shape[1:])).index_add(0, batch.row_C, gates_CTE)
        balance_B = (use_BTE.var(dim=2) / use_BTE.mean(dim=2).square().clamp_min(1e-10)).mean(dim=1)
        return {"best": (loss_CT * batch.weight_CT).sum(), "balance": (balance_B * batch.weight_B).sum()}

    def scores(self, rows: Sequence[TokenizedExample]) -> list[Scores]:
        """The mean logit over the tasks."""
        logits_CT, _ = self(moved(self._sequences(rows), self.device))
        parts = logits_CT.mean(dim=1).split([len(row.texts) for row in rows])
        return [part.double().cpu().numpy() for part in parts]

    def _sequences(self, rows: Sequence[TokenizedExample]) -> Sequences:
        """`[CLS] <|source|> x [SEP] <|candidate|> y [SEP]` for each candidate of each row."""
        ids, own = [], self.settings
        for row in rows:
            (source,) = self.texts.encode(SOURCE, [question_text(row.instruction, row.input)], own.source_tokens)
            for text in self.texts.encode(CANDIDATE, row.texts, own.candidate_tokens):
                ids.append(np.concatenate([source, text[self.texts.place(CANDIDATE, text) :]]))
        return Sequences.of(ids, [[0]] * len(ids))


def _verdicts(row: TokenizedExample, tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each candidate is the best [N, T], and its weight in the row's mean [N, T]."""
    quality_NT = np.stack([row.scores[task] for task in tasks], axis=1)
    known_NT = ~np.isnan(quality_NT)
    best_NT = known_NT & (quality_NT == np.where(known_NT, quality_NT, -np.inf).max(axis=0))
    return best_NT, known_NT / np.maximum(1, known_NT.sum(axis=0)) / len(tasks)


def summareranker(setup: Setup) -> Ranked:
    """SummaReranker's top candidate."""
    return Ranked("summareranker", "ranker", shared_ranker(setup, SummaReranker))


def summareranker_gen(setup: Setup) -> FusedBy:
    """SummaReranker's best candidates, fused by GenFuser."""
    from urg.systems.gen_fuser import shared_fuser

    return FusedBy("summareranker_gen", ranker=shared_ranker(setup, SummaReranker), fuser=shared_fuser(setup))
