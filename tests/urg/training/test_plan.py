"""Steps and learning rates of a run, and what its settings refuse."""

from __future__ import annotations

import dataclasses

import pytest

from data_pipeline.errors import UserError
from urg.batching import Cursor
from urg.config import BatchConfig, EngineConfig, EvalConfig, LossConfig, OptimConfig, TrainConfig
from urg.training.plan import Plan
from urg.training.state import TrainState

RUN = TrainConfig(
    epochs=2,
    batch=BatchConfig(micro=2, accumulation=3),
    engine=EngineConfig(workers=2),
    eval=EvalConfig(metric="rougeL"),
)


def test_an_epoch_has_a_smaller_last_batch() -> None:
    plan = Plan.of(RUN, rows=25)
    assert (plan.global_batch, plan.steps) == (12, 6)
    assert Plan.of(dataclasses.replace(RUN, steps=4), rows=25).steps == 4


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing() -> None:
    plan, optim = Plan(100, 1, 100, 10), OptimConfig(lr=1.0, warmup=0.1)
    rates = [plan.lr(step, optim) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_no_rows_is_an_error() -> None:
    with pytest.raises(UserError, match="no rows"):
        Plan.of(RUN, rows=0)


def test_the_state_survives_json() -> None:
    state = TrainState(step=3, cursor=Cursor(1, 7), best_metric=0.5, best_step=2, tokens=9)
    assert TrainState.from_json({**state.to_json(), "world": 2}) == state


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LossConfig(gamma=-1), "loss.gamma=-1"),
        (lambda: LossConfig(tau=0), "loss.tau=0"),
        (lambda: LossConfig(m=0), "loss.m=0"),
        (lambda: OptimConfig(lr=0), "optim.lr=0"),
        (lambda: EvalConfig(metric="loss"), "eval.metric='loss'"),
        (lambda: TrainConfig(), "eval.bertscore_model"),
        (lambda: dataclasses.replace(RUN, name="../x"), "name='../x'"),
    ],
)
def test_a_bad_value_names_the_field_and_the_value(build: object, named: str) -> None:
    with pytest.raises(ValueError, match=r"must|needs|choose") as error:
        build()  # type: ignore[operator]
    assert named in str(error.value)


def test_under_cross_validation_a_part_of_the_training_split_takes_the_dev_splits_place() -> None:
    from dataclasses import replace
    from types import SimpleNamespace
    from typing import Any

    from urg.config import DataConfig, EvalConfig, TrainConfig
    from urg.training.plan import training_and_dev

    splits = {"train": SimpleNamespace(name="train", ids=[f"row/{i}" for i in range(50)]), "dev": "the dev split"}
    shards: Any = SimpleNamespace(split=splits.__getitem__)
    config = TrainConfig(eval=EvalConfig(metric="label"))
    assert training_and_dev(config, shards) == (splits["train"], "the dev split")
    train, dev = training_and_dev(replace(config, data=DataConfig(folds=5, fold=2)), shards)
    assert len(train) + len(dev) == 50
    assert len(dev) < 25
