"""What the dev split's evaluation measures of each row."""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from data_pipeline.shards import ShardSet
from urg.config import TrainConfig
from urg.evaluation.rank_metrics import RANK_METRICS
from urg.training.dev import DevSet, _means
from urg.training.task import Judged


def test_a_row_whose_scores_are_no_numbers_has_no_ranking_and_spoils_no_mean(
    make_config: Callable[..., TrainConfig],
) -> None:
    config = make_config(eval__metric="label")
    shards = ShardSet.open(config.data.shards)
    dev, rows = DevSet(config, shards, 0, 1), shards.split("dev")[:2]
    labels = [row.scores["rougeL"] for row in rows]
    judged = [(row, Judged(label.copy(), row.texts[0])) for row, label in zip(rows, labels, strict=True)]
    whole = dev._measure(judged)
    assert whole["label"] == [float(label.max()) for label in labels]
    judged[0][1].scores[0] = math.nan  # type: ignore[index]
    part = dev._measure(judged)
    for metric in ("label", *RANK_METRICS):
        assert math.isnan(part[metric][0])
        assert part[metric][1] == whole[metric][1]
        assert _means([part])[metric] == whole[metric][1]
    np.testing.assert_array_equal(part["rougeL"], whole["rougeL"])


@pytest.mark.parametrize("batches", [1, 2])
def test_an_evaluation_that_is_told_not_to_go_on_ends_after_its_batch(
    make_config: Callable[..., TrainConfig], batches: int
) -> None:
    config = make_config(eval__metric="label", eval__batch=1)
    task, answers = MagicMock(), iter([True] * (batches - 1) + [False])
    task.judge.side_effect = lambda rows, device: [Judged(None, "")] * len(rows)
    dev = DevSet(config, ShardSet.open(config.data.shards), 0, 1)
    assert dev.passes == 3
    assert dev.evaluate(task, torch.device("cpu"), lambda: next(answers)) is None
    assert task.judge.call_count == batches
    assert [call[0] for call in task.module.method_calls] == ["eval", "train"]
