"""BART: learned positions, which begin anew for each candidate; biases; norms after each part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from urg.backbones.one_token import cross_attention, layer_norm, linear
from urg.backbones.protocol import Backbone
from urg.products import is_partitioned


class Bart(Backbone):
    """A BartForConditionalGeneration. Its decoder starts from `</s>`."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.network.config.d_model)

    @property
    def depth(self) -> int:
        """Layers of encoder and decoder together."""
        return int(self.network.config.encoder_layers + self.network.config.decoder_layers)

    @property
    def longest(self) -> int:
        """As many positions as were learnt."""
        return int(self.network.config.max_position_embeddings)

    def head(self, states_PD: Tensor) -> Tensor:
        """With a bias a token of the vocabulary."""
        return super().head(states_PD) + self.network.final_logits_bias

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's layers; none is left out by LayerDrop in the ranking step."""
        layers: Sequence[nn.Module] = self.network.model.decoder.layers
        return layers

    def start(self, start_B: Tensor) -> Tensor:
        """The (scaled) embedding at the first position."""
        decoder = self.network.model.decoder
        position_1D = decoder.embed_positions(start_B[:1, None])[0]
        x_BD = layer_norm(decoder.layernorm_embedding, _embedded(decoder.embed_tokens, start_B) + position_1D.float())
        return F.dropout(x_BD, decoder.dropout, decoder.training)

    def layer_step(self, layer: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Norms after each part."""

        def dropped(x: Tensor, rate: float = layer.dropout) -> Tensor:
            return F.dropout(x, rate, layer.training)

        own, cross = layer.self_attn, layer.encoder_attn
        value_BD = linear(own.v_proj, x_BD)  # one token attends to itself with weight 1
        x_BD = layer_norm(layer.self_attn_layer_norm, x_BD + dropped(linear(own.out_proj, value_BD)))
        q_BHE = linear(cross.q_proj, x_BD).unflatten(-1, (cross.num_heads, -1)) * cross.scaling
        mean_BL, context_BD = cross_attention(q_BHE, cross.k_proj, cross.v_proj, states_BLD, mask_BL)
        x_BD = layer_norm(layer.encoder_attn_layer_norm, x_BD + dropped(linear(cross.out_proj, context_BD)))
        inner_BF = dropped(layer.activation_fn(linear(layer.fc1, x_BD)), layer.activation_dropout)
        x_BD = layer_norm(layer.final_layer_norm, x_BD + dropped(linear(layer.fc2, inner_BF)))
        return x_BD, mean_BL


def _embedded(layer: Any, ids_B: Tensor) -> Tensor:
    """The embedding, scaled in fp32."""
    if is_partitioned(layer):
        return layer(ids_B).float()  # type: ignore[no-any-return]
    return F.embedding(ids_B, layer.weight).float() * layer.embed_scale
