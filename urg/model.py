"""URG: one encoder-decoder that encodes every candidate alone, ranks them in one decoder step, and fuses the best K.

Knows torch and transformers, nothing of training or data; which encoder-decoders there are, backbones/ knows.
Letters as in layout.py, and T target tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration
from transformers.utils import logging

from data_pipeline.errors import UserError
from urg.backbones import backbone_of, backbone_type
from urg.backbones.t5 import T5
from urg.frozen_encoder import freeze_linears
from urg.layout import Layout, gather, round_up
from urg.model_folder import SETTINGS_FILE, seal
from urg.products import is_partitioned
from urg.ranking import ranking_scores, ranking_scores_by_groups

LOGITS_AT_ONCE = 2**23
"""Logits that training makes at once: 32 MiB of fp32, several times over."""


@dataclass(frozen=True)
class Settings:
    """What a URG folder says beyond its weights: stored as urg.json."""

    k: int = 3
    """K, candidates fused."""
    k_gap: float | None = None
    """Of these only the ones that are near the top (`near_top`); null: K always."""
    question_tokens: int = 128
    """Tokens kept of a question."""
    response_tokens: int = 128
    """Tokens kept of a candidate."""
    target_tokens: int = 128
    """Tokens kept of a reference, and the longest fused text by default."""
    label: str | None = None
    """The score that the model was trained to rank by; null for an untrained model."""
    generated_data: bool = False
    """Whether it was trained on generated data, which is said wherever its results are shown."""
    score_layers: str = "all"
    """Whose attention ranks: `all` decoder layers, or the `last`."""
    score_tokens: str = "all"
    """The tokens on which it counts: `all` of a candidate's, or those of its `response`."""
    writes: bool = True
    """Whether it was trained to write; one that was trained by the ranking loss alone ranks and cannot fuse."""
    steps: int = 0
    """Optimizer steps that it was trained for."""


@dataclass(frozen=True)
class Output:
    """What one training pass gives."""

    scores_BN: Tensor
    """fp32 [B, N]: attention scores."""
    p_states_PD: Tensor | None
    """[P, D]: the decoder's states at the real target tokens, given the K selected candidates; None where nothing was
    to be decoded."""
    q_states_PD: Tensor | None
    """[P, D]: given those and the last; None where that pass was not asked for."""
    has_last_B: Tensor
    """bool [B]: whether a last candidate is left beside the K selected (N > K)."""
    head: Callable[[Tensor], Tensor]
    """States [P, D] → logits [P, V]."""
    tokens_at_once: int = sys.maxsize
    """States that the head should take at once: a bound of memory."""
    teacher_states_PD: Tensor | None = None
    """[P, D]: as p, but without dropout and gradient; None where that pass was not asked for."""


class URG(nn.Module):
    """An encoder-decoder with URG's ranking step, selection and fusing."""

    network: Any  # the Hugging Face model

    def __init__(self, network: Any, settings: Settings, chunk_tokens: int = 16384) -> None:
        """Raises UserError for a network of an architecture that has no backbone."""
        super().__init__()
        self.network = network
        self.backbone = backbone_of(network)
        self.settings = settings
        self.chunk_tokens = chunk_tokens
        self.is_frozen = False
        self.frozen_encoder: Callable[[Tensor, list[int]], Tensor] | None = None
        self.register_load_state_dict_pre_hook(_take_old_names)

    @property
    def t5(self) -> Any:
        """The network, for what is made of a T5 alone. Raises UserError where it is another."""
        if not isinstance(self.backbone, T5):
            raise UserError(f"the model is a {self.network.config.model_type}; here one of the T5 family is needed.")
        return self.network

    def encode(self, tokens_S: Tensor, layout: Layout) -> Tensor:
        """Each candidate alone through the encoder (eq. 1): packed ids [S] → packed states [S, D].

        Without a gradient only these states grow with the candidates and the queries: what else is held at once is of
        `chunk_tokens` at most, in `rank` of a constant where one query has more, but for a few bytes a token.
        """
        lengths = layout.candidate_lengths
        if self.frozen_encoder is not None:
            return self.frozen_encoder(tokens_S, lengths)
        return self.backbone.encode(tokens_S, lengths, self.chunk_tokens)

    def freeze(self) -> URG:
        """For ranking and fusing alone from here on: no dropout, on a CPU weights that are laid out for the machine.

        There they are held in that layout alone, but for a tied embedding and, in bf16, the decoder's layers, whose
        weights the ranking step reads as they are. So the model can no longer be saved: `state_dict` and
        `save_pretrained` raise UserError. Changes to the weights after this call are not seen. A T5's
        decoder stack then serves `generate` alone (`urg.cached_decoder`).
        """
        if self.is_frozen:
            return self
        self.eval().requires_grad_(False)
        self.is_frozen = True
        self.frozen_encoder = self.backbone.frozen_encoder(self.chunk_tokens)
        self.backbone.speed_up_generate()
        if self.network.device.type == "cpu":
            gives_up = set(self.network.modules())
            if self.network.dtype != torch.float32:  # laid out they would have to be converted at each ranking step
                gives_up -= {part for layer in self.backbone.layers for part in layer.modules()}
            freeze_linears(self.network, gives_up)
        return self

    def rank(self, hidden_SD: Tensor, layout: Layout) -> Tensor:
        """The attention score of each candidate (eq. 5–6): fp32 [B, N], 0 where there is no candidate."""
        layers, tokens = self.settings.score_layers, self.settings.score_tokens
        if self.is_frozen:
            return ranking_scores_by_groups(self.backbone, hidden_SD, layout, layers, tokens, self.chunk_tokens)
        return ranking_scores(self.backbone, hidden_SD, layout, layers, tokens)

    def forward(
        self,
        tokens_S: Tensor,
        layout: Layout,
        target_BT: Tensor | None,
        guide_BN: Tensor | None = None,
        with_last: bool = True,
        target_P: Tensor | None = None,
        with_teacher: bool = False,
    ) -> Output:
        """Encode once, rank, select, and decode given the K selected (p) and given those and the last (q).

        target: None to rank alone. guide: what to select by; None, and NaN in it, mean the predicted score.
        with_last=False leaves q out. target_P: where the real target tokens, the first ones of each row, stand in the
        flat [B·T]; None: all are real. with_teacher: decode given the K selected once more, as p is without dropout.
        """
        if self.is_frozen:
            raise RuntimeError("a frozen model ranks and fuses alone: load its folder again to train it.")
        hidden_SD = self.encode(tokens_S, layout)
        scores_BN = self.rank(hidden_SD, layout)
        if target_BT is None:
            return Output(scores_BN, None, None, torch.zeros_like(layout.mask_BN[:, 0]), self.backbone.head)
        selected_BN, last_BN = self.choose(scores_BN, layout, guide_BN=guide_BN)
        choices_BN = [selected_BN, selected_BN | last_BN] if with_last else [selected_BN]
        if target_P is None:
            target_P = torch.arange(target_BT.numel(), device=target_BT.device)
        backbone, k = self.backbone, self.settings.k
        p_PD, *rest = backbone.teacher_force(hidden_SD, layout, choices_BN, k, target_BT, target_P)
        teacher_PD = None
        if with_teacher:
            teacher_PD = backbone.teacher_states(hidden_SD, layout, selected_BN, k, target_BT, target_P)
        # Under ZeRO-3 all workers must call the head equally often.
        at_once = sys.maxsize if is_partitioned(self) else max(1, LOGITS_AT_ONCE // backbone.vocab_size)
        q_PD = rest[0] if rest else None
        return Output(scores_BN, p_PD, q_PD, last_BN.any(1), backbone.head, at_once, teacher_PD)

    def choose(
        self,
        scores_BN: Tensor,
        layout: Layout,
        k: int | None = None,
        k_gap: float | None = None,
        guide_BN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The candidates that are fused, 1 to k of each query, and its last one: masks [B, N], without a gradient.

        k, k_gap: None for the settings', the gap only where k is None too: a k alone means as many, whatever the gap.
        guide: what to go by instead of the score. NaN in it means the score; a query that has anything else takes k,
        for the gap is one of scores. The last is that of `select`: a gap makes none where there are at most k.
        """
        own = self.settings
        gap = own.k_gap if k is None and k_gap is None else k_gap
        mask_BN, scores_BN = layout.mask_BN, scores_BN.detach()
        by_BN = scores_BN if guide_BN is None else torch.where(guide_BN.isnan(), scores_BN, guide_BN.detach())
        selected_BN, last_BN = select(by_BN, mask_BN, own.k if k is None else k)
        if gap is not None:
            near_BN = near_top(scores_BN, mask_BN, gap)
            if guide_BN is not None:
                near_BN = near_BN | (mask_BN & ~guide_BN.isnan()).any(1, keepdim=True)
            selected_BN = selected_BN & near_BN
        return selected_BN, last_BN

    @torch.inference_mode()
    def fuse(
        self,
        hidden_SD: Tensor,
        layout: Layout,
        selected_BN: Tensor,
        **generation: Any,
    ) -> Tensor:
        """Token ids [B, T] written from the selected candidates, bool [B, N]: `choose` says which.

        generation: options of `generate`.
        """
        width = round_up(int((layout.tokens_BN * selected_BN).sum(1).max()))  # of what was chosen: writing waits anyway
        states_BLD, mask_BL, _ = gather(hidden_SD, layout, selected_BN, selected_BN, width)
        return self.backbone.generate(
            states_BLD, mask_BL, **({"max_new_tokens": self.settings.target_tokens} | generation)
        )

    @classmethod
    def from_scratch(cls, vocab_size: int, settings: Settings, tie_word_embeddings: bool = True, **shape: Any) -> URG:
        """Random weights in the shape of T5 v1.1. shape: d_model, d_kv, d_ff, num_layers, num_heads, dropout_rate."""
        config = T5Config(
            vocab_size=vocab_size,
            feed_forward_proj="gated-gelu",
            **{"decoder_start_token_id": 0, "tie_word_embeddings": tie_word_embeddings, **shape},
        )
        t5 = T5ForConditionalGeneration(config)
        if not tie_word_embeddings:  # transformers 5 ties every T5 that it builds from a config
            t5.lm_head.weight = nn.Parameter(torch.randn_like(t5.lm_head.weight) * config.d_model**-0.5)
        return cls(t5, settings)

    @classmethod
    def from_pretrained(cls, name: str | Path, **overrides: Any) -> URG:
        """Load a folder or hub id of any architecture in BACKBONES; settings come from its urg.json, if it has one, and
        `overrides`. An encoder becomes the start of an encoder-decoder.

        Raises UserError, one sentence, where there is no such model.
        """
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        stored = Path(name) / SETTINGS_FILE
        try:
            kind = backbone_type(AutoConfig.from_pretrained(str(name)), str(name))
            network, lacking = kind.load(str(name))
            settings = Settings(**json.loads(stored.read_text())) if stored.is_file() else Settings()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(_load_failure(name, error)) from error
        if lacking:
            raise UserError(f"model {name} lacks weights, {min(lacking)} among them; copy or download it again.")
        model = cls(network, replace(settings, **overrides))
        if not stored.is_file():
            model.backbone.forget_habits()
        return model

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a Hugging Face folder (safetensors) with urg.json and SHA256SUMS. state_dict: weights to write instead
        of the module's own; buffers are the module's. Raises UserError for a frozen model."""
        kept, weights = self.network.state_dict().keys(), None  # which a frozen model refuses
        if state_dict:
            weights = {name: tensor for name, tensor in self.network.named_buffers() if name in kept}
            weights |= {name.removeprefix("network."): tensor for name, tensor in state_dict.items()}
        self.network.save_pretrained(str(folder), state_dict=weights)
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=2) + "\n")
        seal(Path(folder), like=SETTINGS_FILE)

    def resize_to(self, vocab_size: int) -> None:
        """Add embedding rows where the tokenizer has more tokens than the model (ByT5), without tying a distinct
        head."""
        if vocab_size > self.backbone.vocab_size:
            self.backbone.resize(vocab_size)


def _take_old_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Checkpoints from when every network was a T5 have its weights under `t5.`."""
    for name in [name for name in state_dict if name.startswith(f"{prefix}t5.")]:
        state_dict[f"{prefix}network.{name.removeprefix(f'{prefix}t5.')}"] = state_dict.pop(name)


def select(guide_BN: Tensor, mask_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best and the last candidate of each query, as masks [B, N]; ties by index, the first is better.

    A query with at most K candidates selects all and has no last.
    """
    guide_BN = guide_BN.masked_fill(~mask_BN, float("-inf"))
    place_BN = guide_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count_B1 = mask_BN.sum(1, keepdim=True)
    return mask_BN & (place_BN < k), mask_BN & (place_BN == count_B1 - 1) & (count_B1 > k)


def near_top(scores_BN: Tensor, mask_BN: Tensor, gap: float) -> Tensor:
    """Whose score is no more than `gap` below the top one of its query, in the logarithm: bool [B, N], true for that.

    The logarithm, because a score is about 1/ΣL: only ratios mean the same in every query. A NaN is near, so that a
    model that has diverged selects as it would without a gap.
    """
    top_B1 = scores_BN.masked_fill(~mask_BN, 0.0).amax(1, keepdim=True)
    return ~(scores_BN < top_B1 * math.exp(-gap))


def _load_failure(name: str | Path, error: Exception) -> str:
    if Path(name).is_dir():
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return f"model folder {name} cannot be loaded ({first_line}); copy, download or export it again."
    if Path(name).is_absolute() or str(name).startswith("."):
        return f"model folder {name} does not exist; name a folder with config.json and model.safetensors."
    return (
        f"model {name} is neither a folder nor to be had from the Hugging Face hub: "
        "download it where there is a network, and name its folder."
    )
