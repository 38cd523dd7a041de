"""What URG needs of an encoder-decoder: encode, the ranking step's layers, decode, generate, and facts of its shape.

The base class does what all share by the Hugging Face model itself; a subclass says where that model keeps its parts
and how the first decoder token goes through a layer. A backbone holds no weights: they are the network's.

Letters as in layout.py, and D model width, T target tokens, V vocabulary.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from data_pipeline.errors import UserError
from urg.encoder import encode_padded
from urg.layout import Layout, gather

_DROPOUT_SETTINGS = (
    "dropout",
    "dropout_rate",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


class Backbone(ABC):
    """A Hugging Face encoder-decoder as URG uses it."""

    optional_weights: tuple[str, ...] = ()
    """Prefixes of weights that a folder may lack, for URG does not use them."""

    def __init__(self, network: Any) -> None:
        """network: a ...ForConditionalGeneration, or an EncoderDecoderModel."""
        self.network = network
        self.beams_share = False

    @classmethod
    def load(cls, name: str) -> tuple[Any, set[str]]:
        """The network of a folder or hub id, and the weights that it lacks. Raises what transformers raises."""
        network, info = AutoModelForSeq2SeqLM.from_pretrained(name, use_safetensors=True, output_loading_info=True)
        return network, {key for key in info["missing_keys"] if not key.startswith(cls.optional_weights or ("-",))}

    @classmethod
    def random(cls, config: Any) -> Any:
        """A network of this configuration with random weights; without any within `torch.device("meta")`."""
        return AutoModelForSeq2SeqLM.from_config(config)

    # ------------------------------------------------------------------------------------------------ shape and tokens

    @property
    def encoder(self) -> Any:
        """The encoder stack: ids and mask in, states out."""
        return self.network.get_encoder()

    @property
    def decoder(self) -> Any:
        """The decoder stack: ids and candidates' states in, states out."""
        return self.network.get_decoder()

    @property
    def start_id(self) -> int:
        """The decoder start token."""
        return int(self.network.config.decoder_start_token_id)

    @property
    def end_ids(self) -> set[int]:
        """The tokens that end a text."""
        ids = self.network.generation_config.eos_token_id
        return set(ids) if isinstance(ids, (list, tuple)) else {ids}

    @property
    def pad_id(self) -> int | None:
        """The padding token."""
        pad_id: int | None = self.network.config.pad_token_id
        return pad_id

    @property
    @abstractmethod
    def width(self) -> int:
        """D, the width of the encoder's states."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Layers of encoder and decoder together."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that encoder and decoder have positions for."""
        return sys.maxsize

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding."""
        return int(self.network.get_input_embeddings().num_embeddings)

    def resize(self, vocab_size: int) -> None:
        """Make the embeddings and the head of this size; rows are added at the end."""
        self.network.resize_token_embeddings(vocab_size)

    def set_dropout(self, rate: float) -> None:
        """Note the dropout rate in the configuration, which is saved with the model."""
        own = self.network.config
        for config in (own, getattr(own, "encoder", None), getattr(own, "decoder", None)):
            for setting in _DROPOUT_SETTINGS:
                if hasattr(config, setting):
                    setattr(config, setting, rate)

    def forget_habits(self) -> None:
        """Keep of the options to generate with only the special tokens: others (BART's forced first token, the shortest
        summary) belong to the task that a model was trained for before."""
        old = self.network.generation_config
        self.network.generation_config = type(old)(
            decoder_start_token_id=self.start_id, eos_token_id=old.eos_token_id, pad_token_id=old.pad_token_id
        )

    # ------------------------------------------------------------------------------------------------------ the method

    def packs(self, device: torch.device) -> bool:
        """Whether `encode` computes nothing for padding on this device."""
        return False

    def encode(self, tokens_S: Tensor, lengths: list[int], budget: int) -> Tensor:
        """Each candidate alone (eq. 1): packed ids [S] → packed states [S, D]. budget: tokens encoded at once."""
        return encode_padded(self.encoder, tokens_S, lengths, budget, self.longest)

    def frozen_encoder(self, budget: int) -> Callable[[Tensor, list[int]], Tensor] | None:
        """A faster encoder for inference alone, which takes its weights over from the network; None where there is
        none."""
        return None

    def speed_up_generate(self) -> None:
        """Put a faster decoder for `generate` in the place of the stack's `forward`, where there is one."""
        self.beams_share = False

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's layers."""

    @abstractmethod
    def start(self, start_B: Tensor) -> Tensor:
        """The decoder start token, int64 [B] → what the first layer reads: fp32 [B, D]."""

    @abstractmethod
    def layer_step(self, layer: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The first token's way through a decoder layer in fp32: ([B, D], cross-attention's mean over heads [B, L])."""

    def teacher_force(
        self,
        hidden_SD: Tensor,
        layout: Layout,
        choices_BN: Sequence[Tensor],
        k: int,
        target_BT: Tensor,
        target_P: Tensor,
    ) -> list[Tensor]:
        """The decoder's states [P, D] at the real target tokens, given each of one or two choices of candidates.

        choices: bool [B, N], the first of k candidates at most; the second holds it, and one more. target_P: places of
        the real tokens, the first ones of each row, in the flat [B·T].
        """
        width = layout.longest(k + len(choices_BN) - 1)
        states_BLD, mask_BL, inner_BL = gather(hidden_SD, layout, choices_BN[-1], choices_BN[0], width)
        masks_BL = [inner_BL, mask_BL][-len(choices_BN) :]
        passes = len(masks_BL)
        states = self.decoder(
            input_ids=self.shifted(target_BT).repeat(passes, 1),
            encoder_hidden_states=states_BLD.repeat(passes, 1, 1),
            encoder_attention_mask=torch.cat(masks_BL),
            use_cache=False,
        ).last_hidden_state
        return [states_BTD.flatten(0, 1)[target_P] for states_BTD in states.chunk(passes)]

    @torch.no_grad()
    def teacher_states(
        self, hidden_SD: Tensor, layout: Layout, chosen_BN: Tensor, k: int, target_BT: Tensor, target_P: Tensor
    ) -> Tensor:
        """`teacher_force` given one choice, with the decoder's dropout off and without a gradient: [P, D]."""
        with _at_rest(self.decoder):
            return self.teacher_force(hidden_SD, layout, [chosen_BN], k, target_BT, target_P)[0]

    def shifted(self, target_BT: Tensor) -> Tensor:
        """What the decoder reads to write the targets: the start token, and each target but the last."""
        inputs_BT = target_BT.roll(1, 1)
        inputs_BT[:, 0] = self.start_id
        return inputs_BT

    def head(self, states_PD: Tensor) -> Tensor:
        """The decoder's states → logits over the vocabulary, [P, V]."""
        logits_PV: Tensor = self.network.lm_head(states_PD)
        return logits_PV

    def generate(self, states_BLD: Tensor, mask_BL: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Token ids [B, T] given the candidates' states under a mask. options: of `generate`, which is greedy without.

        Raises UserError where the decoder has no positions for so many tokens.
        """
        self.require_room([("max_new_tokens", max_new_tokens)])
        states_BLD = states_BLD.to(self.network.dtype)
        beams = options.get("num_beams") or self.network.generation_config.num_beams or 1
        cache = self._cache(states_BLD, mask_BL, beams)
        outputs = BaseModelOutput(last_hidden_state=states_BLD)
        own = {"do_sample": False, "past_key_values": cache, "decoder_start_token_id": self.start_id}
        ids_BT: Tensor = self.network.generate(
            encoder_outputs=outputs, attention_mask=mask_BL, max_new_tokens=max_new_tokens, **(own | options)
        )
        return ids_BT

    def _cache(self, states_BLD: Tensor, mask_BL: Tensor, beams: int) -> EncoderDecoderCache:
        """An empty cache for `generate`, which would size one by the encoder's depth, and not by the decoder's.

        For several beams it holds the candidates' keys and values already: `generate` would project them for each beam.
        """
        candidates = _SameForAllBeams()
        if beams > 1:
            self.decoder(
                input_ids=torch.full_like(mask_BL[:, :1], self.start_id, dtype=torch.int64),
                encoder_hidden_states=states_BLD,
                encoder_attention_mask=mask_BL,
                past_key_values=EncoderDecoderCache(DynamicCache(), candidates),
                use_cache=True,
            )
            if not self.beams_share:
                candidates.batch_repeat_interleave(beams)
        return EncoderDecoderCache(DynamicCache(), candidates)

    def require_room(self, lengths: Iterable[tuple[str, int]]) -> None:
        """Raise UserError for a named length that is beyond the positions of the model."""
        for name, length in lengths:
            if length > self.longest:
                raise UserError(f"{name} is {length} tokens, and the model has positions for {self.longest}: lower it.")


@contextmanager
def _at_rest(module: nn.Module) -> Iterator[None]:
    """A module and all below it in eval mode, for as long as the block lasts."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class _SameForAllBeams(DynamicCache):
    """Keys and values of the candidates: where a beam takes another's place, it is one of the same row."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Nothing: a copy of all of them at every token."""
