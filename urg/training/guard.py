"""Stopping a run whose gradients stay non-finite, with its last good checkpoint left as the newest."""

from __future__ import annotations

from pathlib import Path

from urg.training.state import Refused

MOST_IN_A_ROW = 20


class NonFiniteGuard:
    """Counts the steps in a row that were skipped because a gradient was not finite; the same on all workers."""

    def __init__(self, skipped: int, run: Path) -> None:
        self._skipped, self._run, self.in_a_row = skipped, run, 0

    def check(self, step: int, skipped: int, last: bool = False) -> None:
        """After a step. skipped: steps skipped since the run began. last: of the run. Raises Refused after too many in
        a row, and where a run would end so; a single one is no harm, as it has changed no weight."""
        self.in_a_row = self.in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        if self.in_a_row >= (2 if last else MOST_IN_A_ROW):
            raise Refused(
                f"{self.in_a_row} steps in a row, up to step {step}, had non-finite gradients. Checkpoints in "
                f"{self._run} of steps before {step - self.in_a_row} are good: start a run of another name from one "
                "(--name, --resume CHECKPOINT) with a lower optim.lr, or with engine.dtype fp32."
            )
