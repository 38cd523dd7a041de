"""Settings of the loss that are refused when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from urg.loss_config import LossConfig


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gamma": -1}, "loss.gamma=-1: must be 0 (off) or positive."),
        ({"beta": -0.5}, "loss.beta=-0.5: must be 0 (off) or positive."),
        ({"m": 0}, "loss.m=0: must compare at least one token."),
        ({"tau": 0}, "loss.tau=0: must be positive."),
        ({"temperature": 0}, "loss.temperature=0: must be positive and finite."),
        ({"temperature": float("inf")}, "loss.temperature=inf: must be positive and finite."),
        ({"schedule_steps": 0}, "loss.schedule_steps=0: must be at least 1."),
        ({"gamma": 0, "generation": False}, "loss.generation=False: with loss.gamma 0 there is nothing left to learn."),
        (
            {"teacher_dropout": False, "kl_teacher": "joint"},
            "loss.teacher_dropout=False: no gradient passes: needs loss.kl_teacher detached.",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_learnt_by_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="loss") as refused:
        LossConfig(**settings)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("settings", [{"teacher_dropout": False}, {"gamma": 0}, {"beta": 0}, {"generation": False}])
def test_each_part_may_be_left_out(settings: dict[str, Any]) -> None:
    assert LossConfig(**settings) != LossConfig()
