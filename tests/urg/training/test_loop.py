"""What the loop trains on and when it is made, and which model it takes for the best; what it computes is in
test_runs.py."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from urg.batching import GlobalBatches
from urg.config import BatchConfig, DataConfig, EngineConfig, EvalConfig, TrainConfig
from urg.training.loop import Trainer
from urg.training.notices import Notice
from urg.training.state import Outcome, TrainState
from urg.training.task import Share


@pytest.mark.parametrize(
    ("found", "best"),
    [([0.3, 0.5, 0.4], 2), ([0.5, 0.3, 0.5], 3), ([None, 0.1, None], 2), ([None, None], 2), ([-3.0, -2.0, -4.0], 2)],
)
def test_the_best_model_has_the_highest_metric_the_newest_of_equals(found: list[float | None], best: int) -> None:
    """None: dev does not define the metric."""
    assert best_step(TrainConfig(eval=EvalConfig(metric="label")), found) == best


def test_the_part_that_is_tested_on_does_not_choose_the_model() -> None:
    """Under cross-validation a tenth of the other parts does; a run that measures the part itself keeps its last."""
    found = [0.3, 0.5, 0.4, None]
    for fold_dev, best in (("training", 2), ("held_out", 4)):
        data = DataConfig(folds=3, fold=0, fold_dev=fold_dev)  # type: ignore[arg-type]
        assert best_step(TrainConfig(eval=EvalConfig(metric="label"), data=data), found) == best


def best_step(config: TrainConfig, found: Sequence[float | None]) -> int:
    """The evaluation, from 1, whose model is kept."""
    trainer = Trainer.__new__(Trainer)  # of a worker that is not rank 0, without engine and data
    trainer.config = config
    trainer.state, trainer.rank = TrainState(), 1
    for step, value in enumerate(found, 1):
        trainer.state.step = step
        trainer._note_evaluation({} if value is None else {"label": value})
    return trainer.state.best_step


STEPS = 7


class Split(list[int]):
    """Ten rows, each its own index."""

    encoder_tokens = np.arange(1, 11)


class Recorded:
    """A task that notes which thread makes its batches, and what is trained on; it fails at a step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.weights = fails_at, {"ce": 1.0}
        self.makers: set[threading.Thread] = set()
        self.trained: list[tuple[int, list[int], int, int]] = []

    def counts(self, split: Split, rows: np.ndarray) -> int:
        return len(rows)

    def batch(self, share: Share, device: torch.device) -> tuple[int, list[int], int]:
        self.makers.add(threading.current_thread())
        if share.step == self.fails_at:
            raise OSError("the disk is gone")
        return share.step, list(share.examples), share.fillers

    def terms(self, forward: Any, batch: Any, counts: int) -> dict[str, torch.Tensor]:
        self.trained.append((*batch, counts))
        return {"ce": torch.zeros(())}

    def tokens(self, batch: Any) -> tuple[int, int]:
        return 1, 1


def trainer_of(task: Recorded, state: TrainState | None = None) -> Trainer:
    """The second of two workers, which share ten rows; two micro-batches a step."""
    trainer = Trainer.__new__(Trainer)
    for name in ("engine", "window", "saver", "notices", "non_finite", "watchdog", "log", "dev"):
        setattr(trainer, name, MagicMock())
    trainer.config = TrainConfig(
        steps=STEPS,
        eval=EvalConfig(metric="label"),
        batch=BatchConfig(micro=1, accumulation=2),
        engine=EngineConfig(workers=2),
    )
    trainer.rank, trainer.world, trainer.task, trainer.state = 1, 2, task, state or TrainState()  # type: ignore[assignment]
    trainer.split, trainer.batches = Split(range(10)), GlobalBatches(10, 4, 0)  # type: ignore[assignment]
    trainer.plan = SimpleNamespace(steps=STEPS, lr=lambda *_: 0.0)  # type: ignore[assignment]
    trainer.job = MagicMock()
    trainer.notices.listen.return_value = Notice.GO_ON  # type: ignore[attr-defined]
    trainer.non_finite.in_a_row = 0
    trainer.dev.evaluate.return_value = {}  # type: ignore[attr-defined]
    return trainer


@pytest.mark.parametrize("stopped_at", [1, 3, STEPS - 1])
def test_a_loop_that_was_stopped_goes_on_with_what_an_undisturbed_one_has(stopped_at: int) -> None:
    """Though a batch of the next step was made already."""
    whole, before, after = Recorded(), Recorded(), Recorded()
    assert trainer_of(whole).fit(MagicMock()) == Outcome()
    assert [(step, len(rows), counts) for step, rows, _, counts in whole.trained[:6]] == [
        (1, 1, 4), (1, 1, 4), (2, 1, 4), (2, 1, 4), (3, 1, 2), (3, 1, 2)
    ]  # fmt: skip
    stopped = trainer_of(before)
    stopped.notices.listen.side_effect = lambda: Notice(  # type: ignore[attr-defined]
        Notice.STOP if stopped.state.step == stopped_at else Notice.GO_ON
    )
    assert stopped.fit(MagicMock()) == Outcome(stopped_at=stopped_at)
    assert trainer_of(after, stopped.state).fit(MagicMock()) == Outcome()
    assert before.trained + after.trained == whole.trained
    (maker,) = whole.makers
    assert maker is not threading.current_thread()
    assert not any(thread.is_alive() for thread in whole.makers | before.makers | after.makers)


@pytest.mark.parametrize("heard", ["at the step", "in its midst"])
@pytest.mark.parametrize("step", [4, STEPS])
def test_a_notice_puts_the_evaluation_off_until_the_checkpoint_is_written(step: int, heard: str) -> None:
    """Where the run goes on it is made up for at the same step, before another step, and then never again."""
    before, after = trainer_of(Recorded()), Recorded()
    before.config = after_config = dataclasses.replace(before.config, eval=EvalConfig(metric="label", every=4))
    told = {"at the step": 0, "in its midst": 2}[heard]
    asked: list[int] = []

    def listen() -> Notice:
        asked.append(before.state.step)
        return Notice.STOP if asked.count(step) > told else Notice.GO_ON

    before.notices.listen.side_effect = listen  # type: ignore[attr-defined]
    before.dev.evaluate.side_effect = evaluation  # type: ignore[attr-defined]
    saved: list[tuple[int, dict[str, float]]] = []
    before.saver.write.side_effect = lambda state, metrics: saved.append((state.step, metrics))  # type: ignore[attr-defined]
    assert before.fit(MagicMock()) == Outcome(stopped_at=step)
    assert saved == [(4, {"label": 0.5})] * (step > 4) + [(step, {})]
    assert before.state.evaluation_due
    stored = TrainState.from_json(json.loads(json.dumps(before.state.to_json())))
    resumed = trainer_of(after, stored)
    resumed.config = after_config
    resumed.dev.evaluate.side_effect = evaluation  # type: ignore[attr-defined]
    trained: list[int] = []
    resumed.saver.write.side_effect = lambda state, metrics: trained.append(len(after.trained))  # type: ignore[attr-defined]
    assert resumed.fit(MagicMock()) == Outcome()
    assert trained[0] == 0
    assert [call.args[1] for call in resumed.saver.write.call_args_list] == [{"label": 0.5}] * (1 + (step < STEPS))  # type: ignore[attr-defined]
    assert not resumed.state.evaluation_due


def evaluation(task: Any, device: Any, goes_on: Callable[[], bool]) -> dict[str, float] | None:
    """Three batches."""
    return {"label": 0.5} if all(goes_on() for _ in range(3)) else None


def test_a_node_that_goes_has_its_checkpoint_before_the_evaluation_and_the_run_goes_on() -> None:
    trainer = trainer_of(Recorded())
    notices = iter([Notice.GO_ON] * (STEPS - 1) + [Notice.CHECKPOINT])
    trainer.notices.listen.side_effect = lambda: next(notices, Notice.GO_ON)  # type: ignore[attr-defined]
    trainer.dev.evaluate.side_effect = evaluation  # type: ignore[attr-defined]
    assert trainer.fit(MagicMock()) == Outcome()
    assert [call.args[1] for call in trainer.saver.write.call_args_list] == [{}, {"label": 0.5}]  # type: ignore[attr-defined]


def test_an_error_in_making_a_batch_ends_the_loop_at_its_step() -> None:
    task = Recorded(fails_at=3)
    trainer = trainer_of(task)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(MagicMock())
    assert trainer.state.step == 2
    assert {step for step, *_ in task.trained} == {1, 2}
    assert not any(thread.is_alive() for thread in task.makers)
