"""Texts of unlike lengths through a model: sorted by length, padded so that nothing changes; log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of `lengths`, longest first, in batches whose padded size stays within `budget` (one item always fits).

    Longest first, so that memory that does not suffice shows at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def in_batches(lengths: Sequence[int], budget: int, score: Callable[[list[int]], Sequence[float]]) -> list[float]:
    """A value for each item: `score` gives those of one batch of indices. In the items' order."""
    values = [0.0] * len(lengths)
    for batch in length_batches(lengths, budget):
        for index, value in zip(batch, score(batch), strict=True):
            values[index] = value
    return values


def padded(rows: Iterable[Sequence[int]], fill: int, device: str) -> tuple[Tensor, Tensor]:
    """(ids, mask) int64 [B, L] of ragged rows, filled up on the right; the mask is 1 on real tokens."""
    import torch

    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids_BL = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    mask_BL = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids_BL.to(device), mask_BL.to(device)


def log_probabilities(logits_BTV: Tensor, target_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log softmax(logits)[target], natural logarithm, float32 [B, T]; 0 where `mask` is 0."""
    import torch.nn.functional as F

    losses_BT = F.cross_entropy(logits_BTV.float().flatten(0, 1), target_BT.flatten(), reduction="none")
    return -losses_BT.view(target_BT.shape) * mask_BT
