"""T5Gemma: a Gemma 2 with an encoder. Rotary positions, which begin anew for each candidate; grouped queries; logits
of attention that are capped by tanh; RMS norms around each part; layers that attend within a sliding window.

T5Gemma 2 is another architecture: its decoder attends to itself and to the encoder in one softmax, with normed keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from urg.backbones.one_token import cross_attention, linear
from urg.backbones.protocol import Backbone
from urg.products import is_partitioned


class T5Gemma(Backbone):
    """A T5GemmaForConditionalGeneration. Its decoder starts from `<bos>`."""

    @property
    def start_id(self) -> int:
        """The decoder's `<bos>`."""
        return int(self.network.config.decoder.bos_token_id)

    @property
    def width(self) -> int:
        """D of the encoder."""
        return int(self.network.config.encoder.hidden_size)

    @property
    def depth(self) -> int:
        """Layers of encoder and decoder together."""
        config = self.network.config
        return int(config.encoder.num_hidden_layers + config.decoder.num_hidden_layers)

    def resize(self, vocab_size: int) -> None:
        """Make both embeddings and the head of this size: transformers leaves out one of them."""
        self.network.resize_token_embeddings(vocab_size)  # the encoder's, and the head with what is tied to it
        decoder = self.network.model.decoder
        if decoder.get_input_embeddings().num_embeddings != vocab_size:
            decoder.resize_token_embeddings(vocab_size)
        for config in (self.network.config, self.network.config.encoder, self.network.config.decoder):
            config.vocab_size = vocab_size

    def head(self, states_PD: Tensor) -> Tensor:
        """Logits that are capped by tanh."""
        logits_PV, cap = super().head(states_PD), self.network.config.decoder.final_logit_softcapping
        return logits_PV if cap is None else cap * (logits_PV / cap).tanh()

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's layers. A window over one token is that token."""
        layers: Sequence[nn.Module] = self.network.model.decoder.layers
        return layers

    def start(self, start_B: Tensor) -> Tensor:
        """The embedding times √D; the rotation of the first position changes no value."""
        decoder = self.network.model.decoder
        x_BD: Tensor = decoder.dropout(decoder.embed_tokens(start_B).float() * decoder.config.hidden_size**0.5)
        return x_BD

    def layer_step(self, layer: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Norms before and after each part."""
        own, cross = layer.self_attn, layer.cross_attn
        value_BGE = linear(own.v_proj, _norm(layer.pre_self_attn_layernorm, x_BD)).unflatten(-1, (-1, own.head_dim))
        value_BX = value_BGE.repeat_interleave(own.num_key_value_groups, 1).flatten(1)  # attends to itself alone
        x_BD = x_BD + layer.dropout(_norm(layer.post_self_attn_layernorm, linear(own.o_proj, value_BX)))
        q_BX = linear(cross.q_proj, _norm(layer.pre_cross_attn_layernorm, x_BD)) * cross.scaling
        q_BHE, cap = q_BX.unflatten(-1, (-1, cross.head_dim)), cross.attn_logit_softcapping
        mean_BL, context_BX = cross_attention(q_BHE, cross.k_proj, cross.v_proj, states_BLD, mask_BL, cap)
        x_BD = x_BD + layer.dropout(_norm(layer.post_cross_attn_layernorm, linear(cross.o_proj, context_BX)))
        inner_BD = _feed_forward(layer.mlp, _norm(layer.pre_feedforward_layernorm, x_BD))
        return x_BD + layer.dropout(_norm(layer.post_feedforward_layernorm, inner_BD)), mean_BL


def _feed_forward(layer: Any, x_BD: Tensor) -> Tensor:
    inner_BF = layer.act_fn(linear(layer.gate_proj, x_BD)) * linear(layer.up_proj, x_BD)
    return linear(layer.down_proj, layer.dropout(inner_BF))


def _norm(layer: Any, x_BD: Tensor) -> Tensor:
    """Gemma's RMS norm in fp32: its weight is what is added to 1."""
    if is_partitioned(layer):
        return layer(x_BD)  # type: ignore[no-any-return]
    return F.rms_norm(x_BD, x_BD.shape[-1:], 1 + layer.weight.float(), layer.eps)
