"""The guard against gradients that stay non-finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from urg.config import TrainConfig
from urg.training import checkpoints
from urg.training.guard import MOST_IN_A_ROW, NonFiniteGuard
from urg.training.state import Outcome, Refused


def test_single_skips_are_let_pass_and_a_row_of_them_is_not(tmp_path: Path) -> None:
    guard, skipped = NonFiniteGuard(3, tmp_path), 3
    for step in range(10 * MOST_IN_A_ROW + 1):  # every second step is skipped, the last is not
        skipped += step % 2
        guard.check(step, skipped)
        assert guard.in_a_row == step % 2
    for extra in range(1, MOST_IN_A_ROW):
        guard.check(step + extra, skipped + extra)
    with pytest.raises(Refused, match=rf"steps before {step} are good.* lower optim\.lr"):
        guard.check(step + MOST_IN_A_ROW, skipped + MOST_IN_A_ROW)


def test_a_run_may_end_with_one_skip_but_not_with_two(tmp_path: Path) -> None:
    guard = NonFiniteGuard(0, tmp_path)
    guard.check(1, 1, last=True)
    with pytest.raises(Refused, match="2 steps in a row, up to step 2"):
        guard.check(2, 2, last=True)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (2, "bf16"),
        pytest.param(0, "fp32", marks=pytest.mark.exhaustive),
        pytest.param(0, "bf16", marks=pytest.mark.exhaustive),
        pytest.param(3, "bf16", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_explodes_stops_and_writes_no_checkpoint_of_it(
    make_config: Callable[..., TrainConfig],
    run_workers: Callable[..., list[Outcome | None]],
    stage: int,
    dtype: str,
) -> None:
    """Step 4, from a good checkpoint of step 3, with a learning rate of 1e30: the gradients after it are not finite."""
    common = {"engine__workers": 2, "engine__zero_stage": stage, "engine__dtype": dtype, "optim__warmup": 0}
    good = make_config("good", steps=3, **common)
    assert run_workers(good) == [Outcome()] * 2
    [third] = (Path(good.storage) / "good").glob("checkpoint-*")
    bad = make_config("bad", steps=60, checkpoint_every=5, eval__every=5, resume=third, optim__lr=1e30, **common)
    first, second = run_workers(bad)
    assert first == second
    assert first is not None
    assert f"{MOST_IN_A_ROW} steps in a row, up to step {4 + MOST_IN_A_ROW}, had non-finite" in str(first.refusal)
    assert "steps before 4 are good" in str(first.refusal)
    assert not list((Path(bad.storage) / "bad").glob("checkpoint-*"))
    assert checkpoints.damage(third) is None
