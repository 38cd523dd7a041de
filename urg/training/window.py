"""Means between two logs, kept as tensors on the device so that no training step waits for them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from urg.batching import Batch
from urg.encoder import computed_tokens


class Window:
    """Sums over the steps since the last log."""

    def __init__(self, device: torch.device, chunk_tokens: int) -> None:
        self._device, self._chunk_tokens = device, chunk_tokens
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._steps = 0.0, 0
        self._terms: dict[str, Tensor] = {}
        self._real, self._computed = 0, 0

    def add(self, terms: dict[str, Tensor], batch: Batch, passes: int) -> None:
        """Add a micro-batch: its shares of the loss terms, and its tokens. passes: decoder passes over the targets."""
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros((), device=self._device)) + term.detach().float()
        lengths = batch.layout.candidate_lengths
        self._computed += computed_tokens(lengths, self._chunk_tokens, self._device)
        self._computed += passes * batch.target_BT.numel()
        self._real += sum(lengths) + passes * batch.target_tokens

    def end_step(self, seconds: float) -> None:
        """Count an optimizer step and the time that it took; evaluation and checkpoints are not in it."""
        self._steps += 1
        self._seconds += seconds

    def close(self) -> dict[str, float]:
        """Means a step over all workers, and start anew. Collective, and the only place that waits for the device.

        Keys: each loss term; `tokens` (real ones, encoder and decoder), `tokens_per_s`, `useful_tokens` (share of the
        computed tokens that are real), `step_seconds`.
        """
        names = sorted(self._terms)
        counts = torch.tensor([self._real, self._computed], dtype=torch.float64, device=self._device)
        sums = torch.stack([self._terms[name] for name in names])
        dist.all_reduce(counts)
        dist.all_reduce(sums)
        seconds, steps = max(1e-9, self._seconds), max(1, self._steps)
        real, computed = counts.tolist()
        values = {name: total / steps for name, total in zip(names, sums.tolist(), strict=True)}
        self._reset()
        return values | {
            "tokens": real,
            "tokens_per_s": real / seconds,
            "useful_tokens": real / max(1.0, computed),
            "step_seconds": seconds / steps,
        }
