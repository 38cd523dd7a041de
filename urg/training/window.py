"""Means between two logs, kept as tensors on the device so that no training step waits for them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Window:
    """Sums over the steps since the last log."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0
        self._terms: dict[str, Tensor] = {}
        self._real, self._computed = 0, 0

    def add(self, terms: dict[str, Tensor], real: int, computed: int) -> None:
        """Add a micro-batch: its shares of the loss terms, its real tokens, and those that were computed for them."""
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros((), device=self._device)) + term.detach().float()
        self._real += real
        self._computed += computed

    def waited(self, seconds: float) -> None:
        """Count the time that was spent on waiting for a batch."""
        self._waited += seconds

    def end_step(self, seconds: float) -> None:
        """Count an optimizer step and the time that it took; evaluation and checkpoints are not in it."""
        self._steps += 1
        self._seconds += seconds

    def close(self) -> dict[str, float]:
        """Means a step over all workers, and start anew. Collective, and the only place that waits for the device.

        Keys: each loss term; `tokens` (real ones, encoder and decoder), `tokens_per_s`, `useful_tokens` (share of the
        computed tokens that are real), `step_seconds` and of these `data_wait_seconds`, of this worker.
        """
        names = sorted(self._terms)
        counts = torch.tensor([self._real, self._computed], dtype=torch.float64, device=self._device)
        sums = torch.stack([self._terms[name] for name in names])
        dist.all_reduce(counts)
        dist.all_reduce(sums)
        seconds, waited, steps = max(1e-9, self._seconds), self._waited, max(1, self._steps)
        real, computed = counts.tolist()
        values = {name: total / steps for name, total in zip(names, sums.tolist(), strict=True)}
        self._reset()
        return values | {
            "tokens": real,
            "tokens_per_s": real / seconds,
            "useful_tokens": real / max(1.0, computed),
            "step_seconds": seconds / steps,
            "data_wait_seconds": waited / steps,
        }
