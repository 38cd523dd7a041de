"""T5's decoder for inference on a CPU, as `generate` calls it: its weights folded together, and laid out once for the
machine; the beams of a row read its candidates' keys and values together, which are kept once a row.

Letters as in encoder.py, and B rows, R beams of a row, T new tokens, P tokens before them, L tokens of a row's
candidates.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from urg.frozen_encoder import FrozenFeedForward, FrozenProduct, folded, normed


class FrozenDecoder:
    """Stands for the `forward` of a frozen T5 decoder stack (gated or plain feed-forward), with a cache alone.

    Folded as the frozen encoder is: norms and the residual stream in fp32, products in the weights' dtype. Changes to
    the stack after construction are not seen.
    """

    def __init__(self, stack: Any) -> None:
        self._embedding, self._bias = stack.embed_tokens, stack.block[0].layer[0].SelfAttention.compute_bias
        self._blocks = [_FrozenBlock(index, block) for index, block in enumerate(stack.block)]
        self._last_weight = stack.final_layer_norm.weight.detach().float()
        self._epsilon = stack.final_layer_norm.variance_epsilon

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        past_key_values: EncoderDecoderCache,
        **_: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """ids [B·R, T] → states [B·R, T, D]. The cache keeps keys and values of the tokens for each beam, those of the
        candidates for each row: the first call, whose states are [B, L, D], makes these."""
        before, count = past_key_values.get_seq_length(), input_ids.shape[1]
        bias_1HTP = self._bias(count, before + count, past_seen_tokens=before)
        if count > 1:
            seen_TP = torch.ones(count, before + count, dtype=torch.bool).tril(before)
            bias_1HTP = bias_1HTP.masked_fill(~seen_TP, float("-inf"))
        absent_BL = ~encoder_attention_mask.bool()
        bias_BL = torch.zeros(absent_BL.shape).masked_fill(absent_BL, float("-inf"))
        x_BTD = self._embedding(input_ids).float()
        for block in self._blocks:
            x_BTD = block(x_BTD, bias_1HTP, encoder_hidden_states, bias_BL, past_key_values)
        x_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], self._last_weight, self._epsilon)
        states_BTD = x_BTD.to(encoder_hidden_states.dtype)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states_BTD, past_key_values=past_key_values)


class _FrozenBlock:
    """One layer, its weights folded and laid out."""

    def __init__(self, index: int, block: Any) -> None:
        own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        norm, cross_norm = block.layer[0].layer_norm, block.layer[1].layer_norm
        self._index, self._heads, self._epsilon = index, own.n_heads, norm.variance_epsilon
        self._dtype = dtype = own.q.weight.dtype
        self._qkv = FrozenProduct(torch.cat([folded(layer, norm) for layer in (own.q, own.k, own.v)]), dtype)
        self._out = FrozenProduct(own.o.weight, dtype)
        self._cross_q = FrozenProduct(folded(cross.q, cross_norm), dtype)
        self._cross_kv = FrozenProduct(torch.cat([cross.k.weight, cross.v.weight]), dtype)
        self._cross_out = FrozenProduct(cross.o.weight, dtype)
        self._feed_forward = FrozenFeedForward(block.layer[-1])

    def __call__(
        self, x_BTD: Tensor, bias_1HTP: Tensor, states_BLD: Tensor, bias_BL: Tensor, cache: EncoderDecoderCache
    ) -> Tensor:
        """x: fp32 [B·R, T, D] → the same after the layer."""
        q, k, v = self._heads_of(self._qkv(self._normed(x_BTD)), 3)
        k, v = cache.self_attention_cache.update(k, v, self._index)
        x_BTD = self._out.plus(x_BTD, _attend(q, k, v, bias_1HTP).transpose(1, 2).flatten(2))
        x_BTD = self._cross_out.plus(x_BTD, self._cross(self._normed(x_BTD), states_BLD, bias_BL, cache))
        return self._feed_forward(x_BTD)

    def _cross(self, x_BTD: Tensor, states_BLD: Tensor, bias_BL: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """What the candidates give: [B·R, T, H·E]. The beams of a row are queries of one product."""
        if not cache.is_updated.get(self._index):
            kept_once = (part.contiguous() for part in self._heads_of(self._cross_kv(states_BLD), 2))
            cache.cross_attention_cache.update(*kept_once, self._index)
            cache.is_updated[self._index] = True
        kept = cache.cross_attention_cache.layers[self._index]
        rows, (beams_by_rows, count) = len(kept.keys), x_BTD.shape[:2]
        beams = beams_by_rows // rows
        (q,) = self._heads_of(self._cross_q(x_BTD).unflatten(0, (rows, beams)).flatten(1, 2), 1)
        context = _attend(q, kept.keys, kept.values, bias_BL[::beams, None, None, :])
        return context.transpose(1, 2).flatten(2).unflatten(1, (beams, count)).flatten(0, 1)

    def _heads_of(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, T, parts·H·E] → each part's [B, H, T, E]."""
        return tuple(part.transpose(1, 2) for part in x.unflatten(-1, (parts, self._heads, -1)).unbind(2))

    def _normed(self, x: Tensor) -> Tensor:
        return normed(x, self._epsilon, self._dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """[B, H, T, E]. Plain products: for a few queries PyTorch's own attention takes twice their time in fp32, and six
    times in bf16."""
    weights = (q @ k.transpose(2, 3)).float() + bias
    return weights.softmax(-1).to(v.dtype) @ v
