"""DeBERTa's attention for inference, by PyTorch's own: the library has it in plain products alone.

Token i attends to token j by what the two hold, and by how far they are apart, d = i - j in buckets (He et al. 2021):
    (q_i · k_j + q_i · κ_d + k_j · ρ_d) / √(3E)
The library projects all positions in every call, copies them for each sequence and looks the last two terms up. Here
κ and ρ are projected once, a call takes those of the distances that it has, and both terms are views of one product
each, which stand in the attention's mask. The result is the same.

Letters: C sequences, L tokens of one with its padding, D width, H heads, E width of a head, P positions of which the
encoder has embeddings, R = 2L - 1 distances of two tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def use_sdpa(module: nn.Module) -> None:
    """Exchange the attention of every DeBERTa-v2 or v3 encoder below the module; all else stays as it is.

    Changes to the weights after this call are not all seen.
    """
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention

    encoders: list[Any] = [each for each in module.modules() if isinstance(each, DebertaV2Encoder)]
    for encoder in encoders:
        for layer in encoder.layer:
            own: Any = layer.attention.self
            known = isinstance(own, DisentangledSelfAttention) and own.relative_attention
            if known and set(own.pos_att_type) == {"c2p", "p2c"}:
                layer.attention.self = _SelfAttention(own, encoder.get_rel_embedding())


class _SelfAttention(nn.Module):
    """The attention of a layer, by the library's own linear layers under their names."""

    key_HEP: Tensor
    query_HEP: Tensor

    def __init__(self, own: Any, embeddings_PD: Tensor) -> None:
        super().__init__()
        for name, part in own.named_children():
            self.add_module(name, part)
        self._heads, self._span = own.num_attention_heads, own.pos_ebd_size
        self._scale = (3 * own.attention_head_size) ** -0.5
        key, query = (own.key_proj, own.query_proj) if own.share_att_key else (own.pos_key_proj, own.pos_query_proj)
        for name, layer in (("key_HEP", key), ("query_HEP", query)):
            position_PHE = layer(embeddings_PD[: 2 * self._span]).unflatten(-1, (self._heads, -1))
            self.register_buffer(name, (position_PHE * self._scale).permute(1, 2, 0).contiguous(), persistent=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, *_: Any, relative_pos: Tensor, **__: Any
    ) -> tuple[Tensor, None]:
        """States [C, L, D], the mask [C, 1, L, L] and d of any two tokens [1, L, L] → the context [C, L, D]."""
        projections = (self.get_submodule(f"{name}_proj") for name in ("query", "key", "value"))
        q_CLHE, k_CLHE, v_CLHE = (layer(hidden_states).unflatten(-1, (self._heads, -1)) for layer in projections)
        falling_R = torch.cat([relative_pos[0, :, 0].flip(0), relative_pos[0, 0, 1:]])  # of i - j = L - 1, ..., 1 - L
        place_R = (falling_R + self._span).clamp(0, 2 * self._span - 1)
        to_key_CHLL = _by_distance(q_CLHE, self.key_HEP.index_select(2, place_R))
        to_query_CHLL = _by_distance(k_CLHE, self.query_HEP.index_select(2, place_R.flip(0))).transpose(2, 3)
        padding_C11L = ~attention_mask.bool().any(2, keepdim=True)
        bias_CHLL = (to_key_CHLL + to_query_CHLL).masked_fill_(padding_C11L, float("-inf"))
        q, k, v = (x.transpose(1, 2) for x in (q_CLHE, k_CLHE, v_CLHE))
        context_CHLE = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_CHLL, scale=self._scale)
        return context_CHLE.transpose(1, 2).flatten(2), None


def _by_distance(x_CLHE: Tensor, position_HER: Tensor) -> Tensor:
    """[C, H, L, L], a view: at (a, b) the product of token a with position L - 1 - a + b."""
    count, length, heads, _ = x_CLHE.shape
    distances = position_HER.shape[2]
    product_HSR = torch.bmm(x_CLHE.flatten(0, 1).transpose(0, 1), position_HER)  # S: the C·L tokens
    strides = (length * distances, count * length * distances, distances - 1, 1)
    return product_HSR.as_strided((count, heads, length, length), strides, length - 1)
