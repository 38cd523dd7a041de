"""PairRanker, SimCLS and SummaReranker as training tasks. Texts are tokenized on the fly by the encoder's tokenizer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet, Split, TokenizedExample
from urg.config import TrainConfig
from urg.devices import moved
from urg.model_card import system_card
from urg.systems.backbone import load_encoder, load_plain_tokenizer, random_encoder
from urg.systems.encoder import EncoderRanker, RankerBatch, RankerSettings
from urg.systems.pair_ranker import PairRanker
from urg.systems.simcls import SimCLS
from urg.systems.summareranker import SummaReranker
from urg.training.plan import base_model
from urg.training.process import seed_everything
from urg.training.task import Judged, Share, make_ready

RANKERS: dict[str, type[EncoderRanker]] = {cls.system: cls for cls in (PairRanker, SimCLS, SummaReranker)}


class RankerTask:
    """Trains an `EncoderRanker`."""

    module: EncoderRanker

    def __init__(self, config: TrainConfig, shards: ShardSet) -> None:
        self.config, self.shards = config, shards
        self.module = build_ranker(config, shards)
        self.weights = self.module.weights

    def counts(self, split: Split, rows: np.ndarray) -> int:
        """The rows of a global batch: every loss is a mean over rows."""
        return len(rows)

    def batch(self, share: Share, device: torch.device) -> RankerBatch:
        """Sequences and labels; random choices are keyed by (seed, step, row)."""
        draws = [np.random.default_rng((self.config.seed, share.step, int(row))) for row in share.rows]
        return moved(self.module.training_batch(share.examples, draws, share.fillers), device)

    def terms(self, forward: Callable[..., Any], batch: RankerBatch, counts: int) -> dict[str, Tensor]:
        """The ranker's losses."""
        found = self.module.terms(forward(batch.sequences), batch)
        return {name: term / counts for name, term in found.items()}

    def tokens(self, batch: RankerBatch) -> tuple[int, int]:
        """Encoder tokens."""
        return self.module.tokens(batch.sequences)

    def diagnose(self, batch: RankerBatch, counts: int) -> dict[str, float]:
        """Nothing more than the loss."""
        return {}

    def judge(self, examples: Sequence[TokenizedExample], device: torch.device) -> list[Judged]:
        """Rank; the answer is the top candidate."""
        ranked = zip(examples, self.module.scores(examples), strict=True)
        return [Judged(scores, example.texts[int(np.argmax(scores))]) for example, scores in ranked]

    def save(self, folder: Path, weights: dict[str, Tensor], step: int) -> None:
        """A folder that `load_ranker` loads."""
        self.module.settings = dataclasses.replace(self.module.settings, steps=step)
        self.module.save_pretrained(folder, weights)

    def card(self, step: int, dev: Mapping[str, float]) -> str:
        """The model card."""
        return system_card(self.config, self.shards.manifest, step, dev)


def build_ranker(config: TrainConfig, shards: ShardSet) -> EncoderRanker:
    """The ranker to train: the configured encoder, or random weights of the configured shape with the shards'
    tokenizer. Weights are equal on all workers, for they depend on the seed alone."""
    seed_everything(config.seed)
    own, base = config.ranker, base_model(config)
    tasks = tuple(own.tasks or [config.data.label])
    _require_labels(config, shards, tasks)
    if base is None:
        shape = {k: v for k, v in dataclasses.asdict(config.model.scratch).items() if k != "tie_word_embeddings"}
        tokenizer = shards.tokenizer()
        encoder = random_encoder(len(tokenizer), **shape)
    else:
        encoder, tokenizer = load_encoder(base), load_plain_tokenizer(base)
    settings = RankerSettings(
        source_tokens=own.source_tokens,
        candidate_tokens=own.candidate_tokens,
        fills_up=own.fills_up and config.system == "pair_ranker",
        tasks=tasks,
        pooling=own.pooling if config.system != "pair_ranker" else "first",
        dropout=config.model.dropout,
        inference=own.inference,
        aggregation=own.aggregation,
        pairs=own.pairs,
        generated_data=bool(shards.manifest["generated"]),
    )
    model = RANKERS[config.system](encoder, tokenizer, settings)
    # Under ZeRO-3 each call of a layer is collective, so that all workers must make the same number of them.
    model.chunk_tokens = sys.maxsize if config.engine.zero_stage == 3 else config.model.chunk_tokens
    make_ready(model, model.pretrained_model, config)
    return model


def _require_labels(config: TrainConfig, shards: ShardSet, tasks: Sequence[str]) -> None:
    for task in tasks:  # scores differ a split: one that is in dev alone would train nothing
        shards.split(config.data.train_split).has_label(task)
    if config.system == "simcls" and len(tasks) > 1:
        raise UserError(
            "ranker.tasks: simcls has one score, name one task; pair_ranker and summareranker take several."
        )
