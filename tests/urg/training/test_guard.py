"""The guard against gradients that stay non-finite."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.urg.training.tampered_task import NanLoss
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
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        pytest.param(2, "bf16", marks=pytest.mark.faults),
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


def _require_finite(checkpoint: Path) -> None:
    assert checkpoints.damage(checkpoint) is None
    weights = load_file(checkpoint / "model" / "model.safetensors")
    assert [name for name, weight in weights.items() if not weight.isfinite().all()] == []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stage", "dtype"), [(2, "bf16"), pytest.param(0, "fp32", marks=pytest.mark.exhaustive)])
def test_a_loss_that_is_no_number_costs_its_step_and_nothing_else(
    make_config: Callable[..., TrainConfig],
    run_workers: Callable[..., list[Outcome | None]],
    stage: int,
    dtype: str,
) -> None:
    """NaN in one of the four micro-batches of step 4, whose checkpoint is put off by a step."""
    options = {"engine__workers": 2, "engine__zero_stage": stage, "engine__dtype": dtype, "batch__accumulation": 2}
    config = make_config(**options, steps=8, checkpoint_every=4, eval__every=8)
    assert run_workers(config, wrap=partial(NanLoss, steps={4})) == [Outcome()] * 2
    run = Path(config.storage) / config.name
    losses = re.findall(r"^step \d+/8  loss (\S+)", (run / "train.log").read_text(), re.M)
    assert [math.isnan(float(loss)) for loss in losses] == [step == 4 for step in range(1, 9)]
    fifth, eighth = sorted(run.glob("checkpoint-*"))
    assert fifth.name.startswith("checkpoint-00000005-")
    for checkpoint in (fifth, eighth):
        _require_finite(checkpoint)
        state = torch.load(checkpoint / "state" / "mp_rank_00_model_states.pt", weights_only=False)
        assert state["skipped_steps"] == 1


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_losses_that_stay_no_numbers_end_a_run_that_keeps_its_last_good_checkpoint(
    make_config: Callable[..., TrainConfig], run_workers: Callable[..., list[Outcome | None]]
) -> None:
    config = make_config(engine__workers=2, engine__dtype="bf16", steps=60, checkpoint_every=3, eval__every=60)
    first, second = run_workers(config, wrap=partial(NanLoss, steps=range(5, 61)))
    assert first == second
    assert first is not None
    assert f"{MOST_IN_A_ROW} steps in a row, up to step {4 + MOST_IN_A_ROW}, had non-finite" in str(first.refusal)
    assert "steps before 4 are good" in str(first.refusal)
    [third] = (Path(config.storage) / config.name).glob("checkpoint-*")
    assert third.name.startswith("checkpoint-00000003-")
    _require_finite(third)
