"""The guard against gradients that stay non-finite."""

from __future__ import annotations

import pytest

from urg.training.guard import MOST_IN_A_ROW, NonFiniteGuard


def test_single_skips_are_let_pass_and_a_row_of_them_is_not() -> None:
    guard, skipped = NonFiniteGuard(3), 3
    for step in range(10 * MOST_IN_A_ROW + 1):  # every second step is skipped, the last is not
        skipped += step % 2
        guard.check(skipped)
    for _ in range(MOST_IN_A_ROW - 1):
        skipped += 1
        guard.check(skipped)
    with pytest.raises(RuntimeError, match=r"lower optim\.lr"):
        guard.check(skipped + 1)
