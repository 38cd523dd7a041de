"""Stopping a run whose gradients stay non-finite, with its last checkpoint left as it is."""

from __future__ import annotations

MOST_IN_A_ROW = 20


class NonFiniteGuard:
    """Counts the steps in a row that DeepSpeed has skipped because a gradient was not finite."""

    def __init__(self, skipped: int) -> None:
        self._skipped, self._in_a_row = skipped, 0

    def check(self, skipped: int) -> None:
        """After a step. skipped: steps skipped since the run began. Raises RuntimeError after too many in a row."""
        self._in_a_row = self._in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        if self._in_a_row >= MOST_IN_A_ROW:
            raise RuntimeError(
                f"{MOST_IN_A_ROW} steps in a row had non-finite gradients: lower optim.lr, or use engine.dtype fp32."
            )
