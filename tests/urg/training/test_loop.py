"""Which model the loop takes for the best; what it computes is in test_runs.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from urg.config import EvalConfig, TrainConfig
from urg.training.loop import Trainer
from urg.training.state import TrainState


@pytest.mark.parametrize(
    ("found", "best"),
    [([0.3, 0.5, 0.4], 2), ([0.5, 0.3, 0.5], 3), ([None, 0.1, None], 2), ([None, None], 2), ([-3.0, -2.0, -4.0], 2)],
)
def test_the_best_model_has_the_highest_metric_the_newest_of_equals(found: list[float | None], best: int) -> None:
    """None: dev does not define the metric."""
    answers = iter([{} if value is None else {"label": value} for value in found])
    trainer = Trainer.__new__(Trainer)  # of a worker that is not rank 0, without engine and data
    trainer.config = TrainConfig(eval=EvalConfig(metric="label"))
    trainer.state, trainer.rank, trainer.task = TrainState(), 1, SimpleNamespace()  # type: ignore[assignment]
    trainer.engine = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
    trainer.dev = SimpleNamespace(evaluate=lambda *_: next(answers))  # type: ignore[assignment]
    trainer.watchdog = SimpleNamespace(moved=None)  # type: ignore[assignment]
    for step in range(1, len(found) + 1):
        trainer.state.step = step
        trainer._evaluate()
    assert trainer.state.best_step == best
