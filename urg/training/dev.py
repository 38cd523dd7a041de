"""The dev split while training: rank it, fuse it, and measure both, spread over the workers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.shards import ShardSet, TokenizedExample
from urg.batching import collate
from urg.config import TrainConfig
from urg.evaluation.rank_metrics import rank_metrics
from urg.evaluation.text_metrics import TextMetrics
from urg.model import URG
from urg.training.plan import training_and_dev


class DevSet:
    """A worker's share of the dev split. All workers make the same number of forward passes, as ZeRO-3 needs."""

    def __init__(self, config: TrainConfig, shards: ShardSet, rank: int, world: int) -> None:
        self.config, self.shards = config, shards
        _, self.split = training_and_dev(config, shards)
        rows = min(len(self.split), config.eval.rows or len(self.split))
        self.own = list(range(rank, rows, world))
        self.passes = math.ceil(math.ceil(rows / world) / config.eval.batch)
        self.tokenizer = shards.tokenizer()
        self.text_metrics = TextMetrics(config.eval.bertscore_model)

    @torch.inference_mode()
    def evaluate(self, model: URG, device: torch.device) -> dict[str, float]:
        """Means over the dev rows: text metrics of the fused answers, and the ranking's metrics against the label.
        Collective.

        `label` is the mean label of the top pick. A metric that no row defines is absent.
        """
        model.eval()
        ranked: list[tuple[TokenizedExample, np.ndarray, str]] = []
        for i in range(self.passes):
            own = self.own[i * self.config.eval.batch : (i + 1) * self.config.eval.batch]
            results = self._rank_and_fuse(model, device, [self.split[row] for row in own or [0]])
            ranked += results[: len(own)]
        model.train()
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, self._measure(ranked))
        return _means(gathered)

    def _rank_and_fuse(
        self, model: URG, device: torch.device, examples: list[TokenizedExample]
    ) -> list[tuple[TokenizedExample, np.ndarray, str]]:
        """Each example with its scores [N] and its fused text."""
        batch = collate(examples, self.shards.template, self.config.data.label).to(device)
        hidden_SD = model.encode(batch.tokens_S, batch.layout)
        scores_BN = model.rank(hidden_SD, batch.layout)
        ids_BT = model.fuse(
            hidden_SD,
            batch.layout,
            scores_BN,
            num_beams=self.config.eval.num_beams,
            max_new_tokens=self.config.eval.max_new_tokens,
            synced_gpus=self.config.engine.zero_stage == 3,
        )
        texts = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        rows = zip(examples, scores_BN.double().cpu().numpy(), texts, strict=True)
        return [(example, scores[: len(example.models)], text) for example, scores, text in rows]

    def _measure(self, ranked: list[tuple[TokenizedExample, np.ndarray, str]]) -> dict[str, list[float]]:
        """Each metric's value for each row; NaN where a row does not define it."""
        if not ranked:
            return {}
        examples, scores, texts = zip(*ranked, strict=True)
        labels = [example.scores[self.config.data.label] for example in examples]
        values = {"label": [float(label[np.argmax(s)]) for label, s in zip(labels, scores, strict=True)]}
        values |= {name: list(column) for name, column in rank_metrics(scores, labels).values.items()}
        columns = self.text_metrics.values(texts, [example.output for example in examples])
        return values | {name: list(column) for name, column in columns.items()}


def _means(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    """The mean of each metric over the rows of all workers that define it."""
    names = {name for part in parts for name in part}
    columns = {name: np.array([value for part in parts for value in part.get(name, [])]) for name in sorted(names)}
    return {name: float(np.nanmean(column)) for name, column in columns.items() if not np.isnan(column).all()}
