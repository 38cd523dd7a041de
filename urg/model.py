"""URG: one T5 that encodes every candidate alone, ranks them in one decoder step, and fuses the best K.

Knows torch and transformers, nothing of training or data. Letters as in layout.py, and T target tokens, V vocabulary.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from data_pipeline.errors import UserError
from urg.encoder import encode_packed, encode_padded
from urg.frozen_encoder import FrozenEncoder
from urg.layout import Layout
from urg.ranking import ranking_scores

SETTINGS_FILE = "urg.json"


@dataclass(frozen=True)
class Settings:
    """What a URG folder says beyond its T5: stored as urg.json."""

    k: int = 3
    """K, candidates fused."""
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
    steps: int = 0
    """Optimizer steps that it was trained for."""


@dataclass(frozen=True)
class Output:
    """What one training pass gives."""

    scores_BN: Tensor
    """fp32 [B, N]: attention scores."""
    p_logits_BTV: Tensor
    """[B, T, V]: logits given the K selected candidates."""
    q_logits_BTV: Tensor | None
    """[B, T, V]: logits given those and the last; None where that pass was not asked for."""
    has_last_B: Tensor
    """bool [B]: whether a last candidate is left beside the K selected (N > K)."""


class URG(nn.Module):
    """A T5-family model with URG's ranking step, selection and fusing."""

    t5: Any  # a T5ForConditionalGeneration, or mT5's

    def __init__(self, t5: T5ForConditionalGeneration, settings: Settings, chunk_tokens: int = 16384) -> None:
        super().__init__()
        self.t5 = t5
        self.settings = settings
        self.chunk_tokens = chunk_tokens
        self.frozen_encoder: FrozenEncoder | None = None

    def encode(self, tokens_S: Tensor, layout: Layout) -> Tensor:
        """Each candidate alone through the encoder (eq. 1): packed ids [S] → packed states [S, D]."""
        lengths = layout.candidate_lengths
        if self.frozen_encoder is not None:
            return self.frozen_encoder(tokens_S, lengths)
        encode = encode_packed if tokens_S.device.type == "cpu" else encode_padded
        return encode(self.t5.encoder, tokens_S, lengths, self.chunk_tokens)

    def freeze(self) -> URG:
        """For inference alone from here on: no dropout, and on a CPU an encoder that is laid out for the machine.

        Changes to the weights after this call are not seen.
        """
        self.eval().requires_grad_(False)
        on_cpu = self.t5.device.type == "cpu"
        self.frozen_encoder = FrozenEncoder(self.t5.encoder, self.chunk_tokens) if on_cpu else None
        return self

    def rank(self, hidden_SD: Tensor, layout: Layout) -> Tensor:
        """The attention score of each candidate (eq. 5–6): fp32 [B, N], 0 where there is no candidate."""
        return ranking_scores(self.t5.decoder, self.t5.config.decoder_start_token_id, hidden_SD, layout)

    def decode(self, states_BLD: Tensor, mask_BL: Tensor, target_BT: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] for the targets, given the candidates' states under a mask."""
        return self.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BLD),
            attention_mask=mask_BL,
            decoder_input_ids=self.t5._shift_right(target_BT),
            use_cache=False,
        ).logits

    def forward(
        self,
        tokens_S: Tensor,
        layout: Layout,
        target_BT: Tensor,
        guide_BN: Tensor | None = None,
        with_last: bool = True,
    ) -> Output:
        """Encode once, rank, select, and decode given the K selected (p) and given those and the last (q).

        guide: what to select by; None, and NaN in it, mean the predicted score. with_last=False leaves q out.
        """
        hidden_SD = self.encode(tokens_S, layout)
        scores_BN = self.rank(hidden_SD, layout)
        guide_BN = scores_BN if guide_BN is None else torch.where(guide_BN.isnan(), scores_BN, guide_BN)
        selected_BN, last_BN = select(guide_BN.detach(), layout.mask_BN, self.settings.k)
        if not with_last:
            states_BLD, mask_BL, _ = gather(hidden_SD, layout, selected_BN, selected_BN, self.settings.k)
            return Output(scores_BN, self.decode(states_BLD, mask_BL, target_BT), None, last_BN.any(1))
        states_BLD, q_mask_BL, p_mask_BL = gather(
            hidden_SD, layout, selected_BN | last_BN, selected_BN, self.settings.k + 1
        )
        logits = self.decode(states_BLD.repeat(2, 1, 1), torch.cat((p_mask_BL, q_mask_BL)), target_BT.repeat(2, 1))
        p_logits_BTV, q_logits_BTV = logits.chunk(2)
        return Output(scores_BN, p_logits_BTV, q_logits_BTV, last_BN.any(1))

    @torch.inference_mode()
    def fuse(
        self, hidden_SD: Tensor, layout: Layout, scores_BN: Tensor, k: int | None = None, **generation: Any
    ) -> Tensor:
        """Token ids [B, T] written from the K best candidates by score. generation: options of `generate`."""
        k = self.settings.k if k is None else k
        selected_BN, _ = select(scores_BN, layout.mask_BN, k)
        states_BLD, mask_BL, _ = gather(hidden_SD, layout, selected_BN, selected_BN, k)
        # A cache of our own: `generate` would size it by the encoder's depth, which may differ from the decoder's.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        options = {
            "max_new_tokens": self.settings.target_tokens,
            "do_sample": False,
            "past_key_values": cache,
        } | generation
        encoder_outputs = BaseModelOutput(last_hidden_state=states_BLD.to(self.t5.dtype))
        return self.t5.generate(encoder_outputs=encoder_outputs, attention_mask=mask_BL, **options)

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
        """Load a T5-family folder or hub id; settings come from its urg.json, if it has one, and `overrides`.

        Raises UserError, one sentence, where there is no such model.
        """
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        try:
            t5, info = AutoModelForSeq2SeqLM.from_pretrained(str(name), use_safetensors=True, output_loading_info=True)
            stored = Path(name) / SETTINGS_FILE
            settings = Settings(**json.loads(stored.read_text())) if stored.is_file() else Settings()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(_load_failure(name, error)) from error
        if info["missing_keys"]:
            raise UserError(
                f"model {name} lacks weights, {min(info['missing_keys'])} among them; copy or download it again."
            )
        if t5.config.model_type not in ("t5", "mt5"):
            raise UserError(f"model {name} is a {t5.config.model_type}; URG needs one of the T5 family (t5, mt5).")
        return cls(t5, replace(settings, **overrides))

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a Hugging Face folder (safetensors) with urg.json. state_dict: weights to write instead of the module's
        own."""
        weights = {name.removeprefix("t5."): tensor for name, tensor in state_dict.items()} if state_dict else None
        self.t5.save_pretrained(str(folder), state_dict=weights)
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=2) + "\n")

    def resize_to(self, vocab_size: int) -> None:
        """Add embedding rows where the tokenizer has more tokens than the model (ByT5), without tying a distinct
        lm_head."""
        if vocab_size <= self.t5.config.vocab_size:
            return
        head = self.t5.lm_head.weight
        distinct = None if head is self.t5.shared.weight else head.detach().clone()
        self.t5.resize_token_embeddings(vocab_size)
        if distinct is not None:
            grown = torch.cat((distinct, distinct.mean(0, keepdim=True).expand(vocab_size - len(distinct), -1)))
            self.t5.lm_head.weight = nn.Parameter(grown)


def select(guide_BN: Tensor, mask_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best and the last candidate of each query, as masks [B, N]; ties by index, the first is better.

    A query with at most K candidates selects all and has no last.
    """
    guide_BN = guide_BN.masked_fill(~mask_BN, float("-inf"))
    place_BN = guide_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count_B1 = mask_BN.sum(1, keepdim=True)
    return mask_BN & (place_BN < k), mask_BN & (place_BN == count_B1 - 1) & (count_B1 > k)


def gather(
    hidden_SD: Tensor, layout: Layout, wanted_BN: Tensor, inner_BN: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """States [B, L', D] of the wanted candidates (at most k of a query), their mask [B, L'], and the mask of `inner` in
    it.

    L' is the most tokens that k candidates of a query can have: known from the lengths, not from what was chosen.
    """
    wanted_BL = wanted_BN.gather(1, layout.owner_BL) & layout.mask_BL
    place_BL = wanted_BL.int().argsort(dim=1, descending=True, stable=True)[:, : layout.longest(k)]
    mask_BL = wanted_BL.gather(1, place_BL)
    inner_BL = inner_BN.gather(1, layout.owner_BL.gather(1, place_BL)) & mask_BL
    return hidden_SD[layout.token_BL.gather(1, place_BL)], mask_BL, inner_BL


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
