"""Steps and learning rates of a run, and what its settings refuse."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.folds import fold_of
from urg.batching import Cursor
from urg.config import BatchConfig, DataConfig, EngineConfig, EvalConfig, OptimConfig, TrainConfig
from urg.training.plan import Plan, rows_to_train_on, training_and_dev
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


@pytest.fixture
def fifty() -> Any:
    """A set of fifty training rows, ids alone."""
    splits = {"train": SimpleNamespace(name="train", ids=[f"row/{i}" for i in range(50)]), "dev": "the dev split"}
    return SimpleNamespace(split=splits.__getitem__)


def of_fold(fold: int, folds: int = 5, **data: Any) -> TrainConfig:
    return dataclasses.replace(RUN, data=DataConfig(folds=folds, fold=fold, **data))


def test_without_cross_validation_the_dev_split_chooses_the_model(fifty: Any) -> None:
    assert training_and_dev(RUN, fifty) == (fifty.split("train"), "the dev split")


@pytest.mark.parametrize("fold", range(5))
def test_what_cross_validation_holds_out_is_neither_trained_on_nor_does_it_choose(fold: int, fifty: Any) -> None:
    held_out = [row_id for row_id in fifty.split("train").ids if fold_of(row_id, 5) == fold]
    config = of_fold(fold)
    train, dev = training_and_dev(config, fifty)
    assert not config.data.measures_held_out
    assert len(dev) > 0
    assert sorted(train.ids + dev.ids + held_out) == sorted(fifty.split("train").ids)


def test_the_part_that_is_held_out_is_measured_only_where_that_is_asked(fifty: Any) -> None:
    config = of_fold(2, fold_dev="held_out")
    train, dev = training_and_dev(config, fifty)
    assert config.data.measures_held_out
    assert dev.ids == [row_id for row_id in fifty.split("train").ids if fold_of(row_id, 5) == 2]
    assert sorted(train.ids + dev.ids) == sorted(fifty.split("train").ids)
    assert not dataclasses.replace(config, data=DataConfig(fold_dev="held_out")).data.measures_held_out


def test_where_no_row_is_left_to_choose_the_model_by_the_mend_is_named() -> None:
    few: Any = SimpleNamespace(split=lambda _: SimpleNamespace(name="train", ids=["a", "b", "c", "d"]))
    fold = fold_of("a", 3)
    with pytest.raises(UserError, match=r"0 would choose the model .* prepare more rows, or .*data\.fold_dev held_out"):
        training_and_dev(of_fold(fold, 3), few)


def test_the_rows_of_a_fold_are_counted_before_they_are_read(fifty: Any) -> None:
    assert rows_to_train_on(RUN, 50) == 50
    assert rows_to_train_on(of_fold(0, fold_dev="held_out"), 50) == 40
    assert rows_to_train_on(of_fold(0), 50) == 36
    assert rows_to_train_on(of_fold(0, limit=7), 50) == 7
    found = [len(training_and_dev(of_fold(fold), fifty)[0]) for fold in range(5)]
    assert sum(found) / 5 == pytest.approx(36, abs=2)
