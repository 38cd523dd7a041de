"""The dev split while training: let the system answer it, and measure ranking and text, spread over the workers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.shards import ShardSet, TokenizedExample
from urg.config import TrainConfig
from urg.evaluation.rank_metrics import rank_metrics
from urg.evaluation.text_metrics import TextMetrics
from urg.training.plan import training_and_dev
from urg.training.task import Judged, Task


class DevSet:
    """A worker's share of the dev split. All workers make the same number of forward passes, as ZeRO-3 needs."""

    def __init__(self, config: TrainConfig, shards: ShardSet, rank: int, world: int) -> None:
        self.config = config
        _, self.split = training_and_dev(config, shards)
        rows = min(len(self.split), config.eval.rows or len(self.split))
        self.own = list(range(rank, rows, world))
        self.passes = math.ceil(math.ceil(rows / world) / config.eval.batch)
        encoder = config.eval.bertscore_model
        self.text_metrics = TextMetrics({"bertscore": MetricModel(encoder)} if encoder else {})

    @torch.inference_mode()
    def evaluate(self, task: Task, device: torch.device, goes_on: Callable[[], bool]) -> dict[str, float] | None:
        """Means over the dev rows: text metrics of the answers, and the ranking's metrics against the label.
        Collective.

        goes_on: called after each batch on all workers, and the same on all; where it is false that is the end, and
        there are no metrics. `label` is the mean label of the top pick. A metric that no row defines is absent.
        """
        task.module.eval()
        try:
            values = self._values(task, device, goes_on)
        finally:
            task.module.train()
        if values is None:
            return None
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, values)
        return _means(gathered)

    def _values(self, task: Task, device: torch.device, goes_on: Callable[[], bool]) -> dict[str, list[float]] | None:
        """Each metric's values on this worker's rows."""
        values: dict[str, list[float]] = defaultdict(list)
        for i in range(self.passes):
            own = self.own[i * self.config.eval.batch : (i + 1) * self.config.eval.batch]
            examples = [self.split[row] for row in own or [0]]
            judged = list(zip(examples, task.judge(examples, device), strict=True))[: len(own)]
            for name, column in self._measure(judged).items():
                values[name] += column
            if not goes_on():
                return None
        return dict(values)

    def _measure(self, judged: list[tuple[TokenizedExample, Judged]]) -> dict[str, list[float]]:
        """Each metric's value for each row; NaN where a row does not define it."""
        if not judged:
            return {}
        values: dict[str, list[float]] = {}
        ranked = [(judgement.scores, row.scores[self.config.data.label]) for row, judgement in judged]
        scores, labels = [s for s, _ in ranked if s is not None], [label for s, label in ranked if s is not None]
        if scores:
            picks = ((label, s, np.isfinite(s).all()) for label, s in zip(labels, scores, strict=True))
            values["label"] = [float(label[np.argmax(s)]) if numbers else math.nan for label, s, numbers in picks]
            values |= {name: list(column) for name, column in rank_metrics(scores, labels).values.items()}
        columns = self.text_metrics.values([one.text for _, one in judged], [row.output for row, _ in judged])
        return values | {name: list(column) for name, column in columns.items()}


def _means(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    """The mean of each metric over the rows of all workers that define it."""
    names = {name for part in parts for name in part}
    columns = {name: np.array([value for part in parts for value in part.get(name, [])]) for name in sorted(names)}
    return {name: float(np.nanmean(column)) for name, column in columns.items() if not np.isnan(column).all()}
