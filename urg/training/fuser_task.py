"""GenFuser as a training task: cross-entropy of the reference, given K candidates as one text; which ones, says
`fuser.choose`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.shards import ShardSet, Split, TokenizedExample
from urg.config import TrainConfig
from urg.devices import moved
from urg.losses import token_cross_entropy
from urg.model import URG, Settings
from urg.model_card import system_card
from urg.systems.backbone import load_plain_tokenizer
from urg.systems.gen_fuser import FuserSettings, GenFuser, best_first, pad
from urg.training.fuser_choice import candidate_scores
from urg.training.plan import base_model
from urg.training.process import seed_everything
from urg.training.task import Judged, Share, make_ready


@dataclass(frozen=True)
class FuserBatch:
    """The tensors of one micro-batch, padded."""

    source_BL: Tensor
    source_mask_BL: Tensor
    target_BT: Tensor
    target_mask_BT: Tensor
    """bool [B, T]: false for a filler row too."""
    real: int
    """Real tokens, known without asking the device."""


class FuserTask:
    """Trains `GenFuser`."""

    module: GenFuser

    def __init__(self, config: TrainConfig, shards: ShardSet) -> None:
        self.config, self.shards = config, shards
        self.module = build_fuser(config, shards)
        self.weights = {"ce": 1.0}
        self._scores = candidate_scores(config)
        self._pad_id = int(self.module.texts.tokenizer.pad_token_id)

    def counts(self, split: Split, rows: np.ndarray) -> int:
        """Target tokens of a global batch, by the model's own tokenizer."""
        return max(1, sum(len(self.module.texts.target(split[int(row)].output)) for row in rows))

    def batch(self, share: Share, device: torch.device) -> FuserBatch:
        """Inputs and references."""
        sources = [self._source(row) for row in share.examples]
        targets = [self.module.texts.target(row.output) for row in share.examples]
        (source_BL, source_mask_BL), (target_BT, target_mask_BT) = (
            pad(sources, self._pad_id),
            pad(targets, self._pad_id),
        )
        target_mask_BT[len(targets) - share.fillers :] = False
        real = sum(map(len, sources)) + int(target_mask_BT.sum())
        return moved(FuserBatch(source_BL, source_mask_BL, target_BT, target_mask_BT, real), device)

    def terms(self, forward: Callable[..., Any], batch: FuserBatch, counts: int) -> dict[str, Tensor]:
        """Cross-entropy, mean over the target tokens of the global batch."""
        logits_BTV = forward(batch.source_BL, batch.source_mask_BL, batch.target_BT)
        loss_BT = token_cross_entropy(logits_BTV, batch.target_BT)
        return {"ce": loss_BT.masked_fill(~batch.target_mask_BT, 0.0).sum() / counts}

    def tokens(self, batch: FuserBatch) -> tuple[int, int]:
        """Input and target tokens."""
        return batch.real, batch.source_BL.numel() + batch.target_BT.numel()

    def diagnose(self, batch: FuserBatch, counts: int) -> dict[str, float]:
        """Nothing more than the loss."""
        return {}

    def judge(self, examples: Sequence[TokenizedExample], device: torch.device) -> list[Judged]:
        """Fuse candidates that are chosen as in training, for no ranker is there."""
        texts = self.module.write(
            [self._source(row) for row in examples],
            num_beams=self.config.eval.num_beams,
            max_new_tokens=self.config.eval.max_new_tokens,
            synced_gpus=self.config.engine.zero_stage == 3,
        )
        return [Judged(None, text) for text in texts]

    def save(self, folder: Path, weights: dict[str, Tensor], step: int) -> None:
        """A folder that `GenFuser.from_pretrained` loads."""
        self.module.save_pretrained(folder, weights, step)

    def card(self, step: int, dev: Mapping[str, float]) -> str:
        """The model card."""
        return system_card(self.config, self.shards.manifest, step, dev)

    def _source(self, row: TokenizedExample) -> np.ndarray:
        return self.module.texts.source(row, best_first(self._scores(row), self.config.model.k))


def build_fuser(config: TrainConfig, shards: ShardSet) -> GenFuser:
    """The fuser to train: the configured T5, or random weights of the configured shape with the shards' tokenizer.

    Weights are equal on all workers, for they depend on the seed alone.
    """
    seed_everything(config.seed)
    base, own = base_model(config), config.fuser
    tokenizer = shards.tokenizer() if base is None else load_plain_tokenizer(base)
    if base is None:
        urg = URG.from_scratch(len(tokenizer), Settings(), **dataclasses.asdict(config.model.scratch))
    else:
        urg = URG.from_pretrained(base)
        urg.resize_to(len(tokenizer))
    settings = FuserSettings(
        k=config.model.k,
        source_tokens=own.source_tokens,
        candidate_tokens=own.candidate_tokens,
        target_tokens=own.target_tokens,
        label=config.data.label,
        choose=own.choose,
        generated_data=bool(shards.manifest["generated"]),
    )
    model = GenFuser(urg.t5, tokenizer, settings)
    model.t5.config.dropout_rate = config.model.dropout  # saved with the model
    make_ready(model, model.t5, config)
    return model
