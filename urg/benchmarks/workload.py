"""The rows that are timed: random tokens with MixInstruct's lengths, the same for every system.

Questions have 20 tokens on average, responses and references 66; log-normal, cut at 128 (URG, §4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.benchmarks.corpus import QUESTION_TOKENS, RESPONSE_TOKENS, lengths
from urg.batching import Batch, pack
from urg.layout import round_up

_SPECIALS = 5  # pad, eos, unk, <question>, <response>: ids that no text has
PAD, EOS, QUESTION, RESPONSE = 0, 1, 3, 4


@dataclass(frozen=True)
class Row:
    """One query, as token ids."""

    question: np.ndarray
    responses: tuple[np.ndarray, ...]
    target: np.ndarray

    def candidates(self) -> list[np.ndarray]:
        """The encoder's input for each response: `<question> x </s> <response> y </s>`."""
        before = [QUESTION, *self.question, EOS, RESPONSE]
        return [np.array([*before, *response, EOS], dtype=np.int64) for response in self.responses]


def draw_rows(rows: int, n: int, vocab_size: int, seed: int = 0, response_tokens: float = RESPONSE_TOKENS) -> list[Row]:
    """`rows` rows of n candidates each. Lengths are drawn for all rows at once, so that their means are the set's."""
    rng = np.random.default_rng(seed)
    questions = lengths(rng, rows, QUESTION_TOKENS)
    responses = lengths(rng, rows * n, response_tokens).reshape(rows, n)
    targets = lengths(rng, rows, RESPONSE_TOKENS)

    def text(tokens: int) -> np.ndarray:
        return rng.integers(_SPECIALS, vocab_size, tokens)

    return [
        Row(text(questions[b]), tuple(text(length) for length in responses[b]), np.append(text(targets[b]), EOS))
        for b in range(rows)
    ]


def batch_of(rows: list[Row], seed: int = 0) -> Batch:
    """The rows as our training takes them, with random labels."""
    tokens_S, layout = pack([row.candidates() for row in rows])
    targets = [row.target for row in rows]
    width = round_up(max(map(len, targets)))
    target_BT = torch.full((len(rows), width), PAD)
    for b, target in enumerate(targets):
        target_BT[b, : len(target)] = torch.from_numpy(target)
    place_P = torch.cat([torch.arange(b * width, b * width + len(target)) for b, target in enumerate(targets)])
    quality_BN = torch.rand(tuple(layout.tokens_BN.shape), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens_S, layout, target_BT, place_P, quality_BN, torch.ones(len(rows)))


def padded(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """What obvious code makes of the rows: ids and mask [B, N, L], all as long as the longest candidate."""
    sequences = [row.candidates() for row in rows]
    longest = max(len(ids) for row in sequences for ids in row)
    ids_BNL = torch.full((len(rows), len(sequences[0]), longest), PAD)
    mask_BNL = torch.zeros(ids_BNL.shape, dtype=torch.int64)
    for b, row in enumerate(sequences):
        for n, ids in enumerate(row):
            ids_BNL[b, n, : len(ids)] = torch.from_numpy(ids)
            mask_BNL[b, n, : len(ids)] = 1
    return ids_BNL, mask_BNL
