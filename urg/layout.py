"""Where each token of a batch stands: candidates packed end to end, and the same tokens as one padded row a query.

The encoder sees candidates, the decoder sees queries, and padding belongs to neither: everything that is computed a
token is kept packed, [S, D], and a `Layout` holds the indices that lead from the packed tokens to the rows [B, L] and
back. It is made on the CPU from lengths alone, so that no step has to ask the accelerator for a size.

Letters: B queries, N candidates of a query (padded to the most in the batch), C all candidates, S all real tokens, L
real tokens of all candidates of a query (padded to the most in the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The shape of a batch of queries with a ragged number of candidates of ragged length."""

    lengths: tuple[tuple[int, ...], ...]
    """Real tokens of each candidate of each query; none is 0."""
    token_BL: Tensor
    """int64 [B, L]: index into the packed tokens; 0 where there is no token."""
    mask_BL: Tensor
    """bool [B, L]: true where there is a token."""
    owner_BL: Tensor
    """int64 [B, L]: which candidate of its query a token belongs to; 0 where there is no token."""
    tokens_BN: Tensor
    """int64 [B, N]: real tokens of each candidate; 0 where there is no candidate."""
    response_BL: Tensor
    """bool [B, L]: true where a token belongs to a candidate's response, not to the question before it."""

    @classmethod
    def of(cls, lengths: list[list[int]], questions: list[int] | None = None) -> Layout:
        """The layout of queries whose candidates have these lengths. questions: tokens at the beginning of each
        candidate of a query that are its question; None: none are. Raises ValueError for a candidate without a token.
        """
        if not lengths or any(not row or min(row) < 1 for row in lengths):
            raise ValueError("every query needs a candidate, and every candidate at least one real token.")
        rows = [np.asarray(row) for row in lengths]
        sizes = [int(row.sum()) for row in rows]
        token, owner = (np.zeros((len(rows), max(sizes)), dtype=np.int64) for _ in range(2))
        response = np.zeros(token.shape, dtype=bool)
        tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        start = 0
        for b, (row, size, question) in enumerate(zip(rows, sizes, questions or [0] * len(rows), strict=True)):
            token[b, :size] = np.arange(start, start + size)
            owner[b, :size] = np.repeat(np.arange(len(row)), row)
            response[b, :size] = np.arange(size) - np.repeat(np.cumsum(row) - row, row) >= question
            tokens[b, : len(row)] = row
            start += size
        mask = np.arange(max(sizes))[None, :] < np.asarray(sizes)[:, None]
        arrays = (torch.from_numpy(array) for array in (token, mask, owner, tokens, response))
        return cls(tuple(tuple(int(length) for length in row) for row in lengths), *arrays)

    def rows(self, rows: list[int]) -> Layout:
        """Some of the queries, in this order; the indices are still those of all packed tokens, and N stays."""
        lengths = tuple(self.lengths[b] for b in rows)
        index, width = torch.tensor(rows, device=self.token_BL.device), max(map(sum, lengths))
        token_BL, mask_BL, owner_BL, response_BL = (
            x_BL[index, :width] for x_BL in (self.token_BL, self.mask_BL, self.owner_BL, self.response_BL)
        )
        return Layout(lengths, token_BL, mask_BL, owner_BL, self.tokens_BN[index], response_BL)

    @property
    def mask_BN(self) -> Tensor:
        """bool [B, N]: true where there is a candidate."""
        return self.tokens_BN > 0

    @property
    def candidate_lengths(self) -> list[int]:
        """Length of each of the C candidates, in packed order."""
        return [length for row in self.lengths for length in row]

    def longest(self, k: int) -> int:
        """A width that holds any k candidates of one query, for what is gathered for fusing; rounded up."""
        widest = max(sum(sorted(row, reverse=True)[:k]) for row in self.lengths)
        return min(round_up(widest, 64), self.token_BL.shape[1])


def gather(
    hidden_SD: Tensor, layout: Layout, wanted_BN: Tensor, inner_BN: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """States [B, L', D] of the wanted candidates, their mask [B, L'], and the mask of `inner` in it.

    width: L', or more than there are; the tokens that are wanted of any query, or more: `Layout.longest` says how many
    they can be without asking an accelerator what was chosen.
    """
    wanted_BL = wanted_BN.gather(1, layout.owner_BL) & layout.mask_BL
    place_BL = wanted_BL.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    mask_BL = wanted_BL.gather(1, place_BL)
    inner_BL = inner_BN.gather(1, layout.owner_BL.gather(1, place_BL)) & mask_BL
    return hidden_SD[layout.token_BL.gather(1, place_BL)], mask_BL, inner_BL


def plan_chunks(lengths: list[int], budget: int) -> list[tuple[int, list[int]]]:
    """(padded length, candidate indices), longest first, in chunks of at most `budget` padded tokens.

    A candidate that is longer than the budget stands alone.
    """
    chunks: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if chunks and chunks[-1][0] * (len(chunks[-1][1]) + 1) <= budget:
            chunks[-1][1].append(index)
        else:
            chunks.append((round_up(lengths[index]), [index]))
    return chunks


def round_up(size: int, multiple: int = 8) -> int:
    """The next multiple: few distinct shapes, for which kernels are compiled once (oneDNN) and suit tensor cores."""
    return -(-size // multiple) * multiple
