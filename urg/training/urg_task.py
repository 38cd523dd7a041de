"""URG as a training task: equation 11 on packed candidates."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet, Split, TokenizedExample
from data_pipeline.tokenization import Template, decode_texts
from urg.batching import Batch, collate
from urg.config import TrainConfig
from urg.decoder import ROWS
from urg.devices import moved
from urg.encoder import computed_tokens
from urg.layout import round_up
from urg.model import URG, Settings
from urg.model_card import model_card
from urg.objective import Counts, guide, loss_terms, needs_last, needs_teacher, term_weights
from urg.training.engine import gradient_norms
from urg.training.plan import base_model
from urg.training.process import seed_everything
from urg.training.task import Judged, Share, make_ready


@dataclass(frozen=True)
class Guided:
    """A batch, and what its candidates are selected by."""

    batch: Batch
    guide_BN: Tensor | None


class UrgTask:
    """Trains `urg.model.URG`."""

    module: URG

    def __init__(self, config: TrainConfig, shards: ShardSet) -> None:
        self.config, self.shards = config, shards
        self.tokenizer = shards.tokenizer()
        self.module = build_model(config, shards)
        self.weights = term_weights(config.loss)
        self._with_last, self._with_teacher = needs_last(config.loss), needs_teacher(config.loss)

    def counts(self, split: Split, rows: np.ndarray) -> Counts:
        """The rows and target tokens of a global batch."""
        config = self.config
        return Counts.of(split.target_tokens[rows], split.n_candidates[rows], config.model.k, config.loss.reduction)

    def batch(self, share: Share, device: torch.device) -> Guided:
        """Packed candidates, references and labels."""
        label, loss = self.config.data.label, self.config.loss
        batch = collate(share.examples, self.shards.template, label, share.fillers)
        guide_BN = guide(batch, loss, self.config.seed, share.step, share.rows)
        return moved(Guided(batch, guide_BN), device)

    def terms(self, forward: Callable[..., Any], batch: Guided, counts: Counts) -> dict[str, Tensor]:
        """The terms of equation 11."""
        own = batch.batch
        target_BT = own.target_BT if self.config.loss.generation else None
        passes = (self._with_last, own.target_P, self._with_teacher)
        output = forward(own.tokens_S, own.layout, target_BT, batch.guide_BN, *passes)
        return loss_terms(output, own, self.config.loss, counts)

    def tokens(self, batch: Guided) -> tuple[int, int]:
        """Encoder tokens, and target tokens once for each decoder pass."""
        own, calls = batch.batch, [int(self.config.loss.generation) + int(self._with_last), int(self._with_teacher)]
        lengths = own.layout.candidate_lengths
        packed = self.module.backbone.packs(own.tokens_S.device)
        computed = computed_tokens(lengths, self.module.chunk_tokens, packed)
        real = len(own.target_P)
        written = sum(round_up(passes * real, ROWS) if packed else passes * own.target_BT.numel() for passes in calls)
        return sum(lengths) + sum(calls) * real, computed + written

    def diagnose(self, batch: Guided, counts: Counts) -> dict[str, float]:
        """γ·‖∇rank‖ / ‖∇ce‖: how much of the gradient ranking has."""
        gamma, own = self.config.loss.gamma, batch.batch
        if self.config.engine.zero_stage == 3 or gamma == 0 or not self.config.loss.generation:
            return {}  # under ZeRO-3 no worker holds a parameter whole
        output = self.module(own.tokens_S, own.layout, own.target_BT, with_last=False, target_P=own.target_P)
        terms = loss_terms(output, own, self.config.loss, counts)
        norms = gradient_norms(self.module, {name: terms[name] for name in ("rank", "ce")})
        return {"grad_ratio_rank_to_ce": gamma * norms["rank"] / max(norms["ce"], 1e-12)}

    def judge(self, examples: Sequence[TokenizedExample], device: torch.device) -> list[Judged]:
        """Rank and fuse; the answer of a model that does not write is its top candidate."""
        batch = moved(collate(examples, self.shards.template, self.config.data.label), device)
        hidden_SD = self.module.encode(batch.tokens_S, batch.layout)
        scores_BN = self.module.rank(hidden_SD, batch.layout)
        scores = [s[: len(row.models)] for s, row in zip(scores_BN.double().cpu().numpy(), examples, strict=True)]
        if not self.config.loss.generation:
            return [Judged(s, row.texts[int(np.argmax(s))]) for s, row in zip(scores, examples, strict=True)]
        selected_BN, _ = self.module.choose(scores_BN, batch.layout)
        ids_BT = self.module.fuse(
            hidden_SD,
            batch.layout,
            selected_BN,
            num_beams=self.config.eval.num_beams,
            max_new_tokens=self.config.eval.max_new_tokens,
            synced_gpus=self.config.engine.zero_stage == 3,
        )
        texts = decode_texts(ids_BT, self.tokenizer)
        return [Judged(s, text) for s, text in zip(scores, texts, strict=True)]

    def save(self, folder: Path, weights: dict[str, Tensor], step: int) -> None:
        """A folder that `Ensemble.from_pretrained` loads."""
        self.module.settings = dataclasses.replace(self.module.settings, steps=step)
        self.module.save_pretrained(folder, weights)
        self.tokenizer.save_pretrained(folder)

    def card(self, step: int, dev: Mapping[str, float]) -> str:
        """The model card."""
        return model_card(self.config, self.shards.manifest, step, dev)


def build_model(config: TrainConfig, shards: ShardSet) -> URG:
    """The model to train: the configured base, or random weights of the configured shape, for the shards' tokenizer.

    Weights are equal on all workers, for they depend on the seed alone.
    """
    seed_everything(config.seed)
    lengths, vocab_size = shards.lengths, len(shards.tokenizer())
    settings = Settings(
        k=config.model.k,
        k_gap=config.model.k_gap,
        question_tokens=lengths.question,
        response_tokens=lengths.response,
        target_tokens=lengths.target,
        label=config.data.label,
        generated_data=bool(shards.manifest["generated"]),
        score_layers=config.model.score_layers,
        score_tokens=config.model.score_tokens,
        writes=config.loss.generation,
    )
    base = base_model(config)
    if base is None:
        model = URG.from_scratch(vocab_size, settings, **dataclasses.asdict(config.model.scratch))
    else:
        model = URG.from_pretrained(base).float()
        model.settings = settings
        require_fit(model, base, shards)
        model.resize_to(vocab_size)
    # Under ZeRO-3 each call of a layer is collective, so that all workers must make the same number of them.
    model.chunk_tokens = sys.maxsize if config.engine.zero_stage == 3 else config.model.chunk_tokens
    model.backbone.set_dropout(config.model.dropout)
    make_ready(model, model.network, config)
    return model


def require_fit(model: URG, base: str, shards: ShardSet) -> None:
    """Raise UserError where the shards have other special tokens than the model, or longer texts than it has positions
    for."""
    template, backbone, lengths = shards.template, model.backbone, shards.lengths
    if template != Template.from_tokenizer(shards.tokenizer()):
        raise UserError(f"{shards.folder} was prepared by an older version for another template: prepare it again.")
    if template.pad_id != backbone.pad_id or template.eos_id not in backbone.end_ids:
        raise UserError(
            f"{shards.folder} was prepared by a tokenizer that is not that of model.base {base}: prepare it again with "
            "--tokenizer and the model's folder or name."
        )
    candidate = template.candidate_length(lengths.question, lengths.response)
    backbone.require_room([("a candidate with its question", candidate), ("lengths.target", lengths.target)])
