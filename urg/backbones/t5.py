"""The T5 family: t5, Flan-T5, mT5, ByT5.

T5 scales q·k by 1 and has no position bias in cross-attention. Its encoder is the one that we have packed code for
(encoder.py, frozen_encoder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from urg.backbones.one_token import cross_attention, linear
from urg.backbones.protocol import Backbone
from urg.cached_decoder import CachedDecoder
from urg.decoder import decode_packed
from urg.encoder import encode_packed
from urg.frozen_encoder import FrozenEncoder
from urg.layout import Layout, gather
from urg.products import is_partitioned, product
from urg.t5_layers import fp32_norm


class T5(Backbone):
    """A T5ForConditionalGeneration, or mT5's."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.network.config.d_model)

    @property
    def depth(self) -> int:
        """Layers of encoder and decoder together."""
        config = self.network.config
        return int(config.num_layers + (config.num_decoder_layers or config.num_layers))

    def resize(self, vocab_size: int) -> None:
        """Make the embedding of this size, without tying a distinct lm_head: transformers 5 would."""
        head = self.network.lm_head.weight
        distinct = None if head is self.network.shared.weight else head.detach().clone()
        self.network.resize_token_embeddings(vocab_size)
        if distinct is not None:
            grown = torch.cat((distinct, distinct.mean(0, keepdim=True).expand(vocab_size - len(distinct), -1)))
            self.network.lm_head.weight = nn.Parameter(grown)

    def packs(self, device: torch.device) -> bool:
        """On a CPU."""
        return device.type == "cpu"

    def encode(self, tokens_S: Tensor, lengths: list[int], budget: int) -> Tensor:
        """Without padding on a CPU; as others do elsewhere."""
        if self.packs(tokens_S.device):
            return encode_packed(self.network.encoder, tokens_S, lengths, budget)
        return super().encode(tokens_S, lengths, budget)

    def frozen_encoder(self, budget: int) -> Callable[[Tensor, list[int]], Tensor] | None:
        """On a CPU, weights folded together and laid out for the machine."""
        return FrozenEncoder(self.network.encoder, budget) if self.packs(self.network.device) else None

    def speed_up_generate(self) -> None:
        """On a CPU, one whose beams share a row's candidates."""
        self.beams_share = self.packs(self.network.device)
        if self.beams_share:
            self.decoder.forward = CachedDecoder(self.decoder)

    def teacher_force(
        self,
        hidden_SD: Tensor,
        layout: Layout,
        choices_BN: Sequence[Tensor],
        k: int,
        target_BT: Tensor,
        target_P: Tensor,
    ) -> list[Tensor]:
        """Without padding on a CPU; elsewhere two passes are one row, so that keys and values are projected once."""
        if self.packs(hidden_SD.device):
            rows, width = target_BT.shape
            lengths = torch.bincount(target_P // width, minlength=rows).tolist()
            inputs_BT = self.shifted(target_BT)
            return decode_packed(self.network.decoder, hidden_SD, layout, choices_BN, inputs_BT, lengths)
        if len(choices_BN) == 1:
            return super().teacher_force(hidden_SD, layout, choices_BN, k, target_BT, target_P)
        return self._in_one_row(hidden_SD, layout, choices_BN, k, target_BT, target_P)

    def _in_one_row(
        self,
        hidden_SD: Tensor,
        layout: Layout,
        choices_BN: Sequence[Tensor],
        k: int,
        target_BT: Tensor,
        target_P: Tensor,
    ) -> list[Tensor]:
        """`teacher_force` by the library's decoder, the second pass of a row behind its first.

        Neither attends to the other, and T5's positions are distances, so that each is as if it stood alone. Both read
        the same tokens, but for the last candidate, which only the second one sees.
        """
        states_BLD, mask_BL, inner_BL = gather(hidden_SD, layout, choices_BN[1], choices_BN[0], layout.longest(k + 1))
        length = target_BT.shape[1]
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=target_BT.device).tril()
        own_UU = torch.block_diag(causal_TT, causal_TT)  # U: the tokens of both passes
        reads_BUL = torch.stack([inner_BL, mask_BL], dim=1).repeat_interleave(length, dim=1)
        states_BUD = self.decoder(
            input_ids=self.shifted(target_BT).repeat(1, 2),
            attention_mask=_added(own_UU[None, None], states_BLD.dtype),
            encoder_hidden_states=states_BLD,
            encoder_attention_mask=_added(reads_BUL[:, None], states_BLD.dtype),
            use_cache=False,
        ).last_hidden_state
        return [states_BTD.flatten(0, 1)[target_P] for states_BTD in states_BUD.chunk(2, dim=1)]

    def head(self, states_PD: Tensor) -> Tensor:
        """The output layer; where it is the embedding, over states that are scaled."""
        scaled = getattr(self.network.config, "scale_decoder_outputs", False)  # mT5 has no such setting
        return product(self.network.lm_head, states_PD * self.width**-0.5 if scaled else states_PD)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's blocks."""
        blocks: Sequence[nn.Module] = self.network.decoder.block
        return blocks

    def start(self, start_B: Tensor) -> Tensor:
        """The embedding alone."""
        decoder = self.network.decoder
        x_BD: Tensor = decoder.dropout(decoder.embed_tokens(start_B).float())
        return x_BD

    def layer_step(self, layer: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Norms before each part."""
        own, cross, feed_forward = layer.layer
        value_BD = linear(own.SelfAttention.v, _norm(own.layer_norm, x_BD))  # one token attends to itself with weight 1
        x_BD = x_BD + own.dropout(linear(own.SelfAttention.o, value_BD))
        attention = cross.EncDecAttention
        q_BHE = linear(attention.q, _norm(cross.layer_norm, x_BD)).unflatten(-1, (attention.n_heads, -1))
        mean_BL, context_BX = cross_attention(q_BHE, attention.k, attention.v, states_BLD, mask_BL)
        x_BD = x_BD + cross.dropout(linear(attention.o, context_BX))
        inner_BD = _feed_forward(feed_forward.DenseReluDense, _norm(feed_forward.layer_norm, x_BD))
        return x_BD + feed_forward.dropout(inner_BD), mean_BL


def _feed_forward(layer: Any, x_BD: Tensor) -> Tensor:
    """Gated (v1.1) or plain (v1.0)."""
    if hasattr(layer, "wi_0"):
        inner = layer.act(linear(layer.wi_0, x_BD)) * linear(layer.wi_1, x_BD)
    else:
        inner = layer.act(linear(layer.wi, x_BD))
    return linear(layer.wo, layer.dropout(inner))


def _norm(layer: Any, x_BD: Tensor) -> Tensor:
    """T5's RMS norm in fp32."""
    if is_partitioned(layer):
        return layer(x_BD).float()  # type: ignore[no-any-return]
    return fp32_norm(layer, x_BD)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to attention's logits: every implementation takes it so."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
