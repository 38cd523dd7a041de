"""T5's decoder on a CPU as `generate` calls it: a token or a few at a time, with what it has read kept. The beams of a
row read its candidates' keys and values together, which are kept once a row.

Letters as in encoder.py, and B rows, R beams of a row, T new tokens, P those and what was before them, L tokens of a
row's candidates, X heads · their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from urg.t5_layers import activated, fp32_norm, inner_layers


class CachedDecoder:
    """Stands for the `forward` of a T5 decoder stack in `generate`: by the stack's own layers, always with a cache, and
    without what `generate` asks for on request alone (attentions, embeddings as input, a mask of the written tokens).

    Norms and the residual stream are in fp32, products in the weights' dtype.
    """

    def __init__(self, stack: Any) -> None:
        self._stack, self._bias = stack, stack.block[0].layer[0].SelfAttention.compute_bias

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
        bias_1HTP = self._bias(count, before + count, past_seen_tokens=before).float()
        if count > 1:
            seen_TP = torch.ones(count, before + count, dtype=torch.bool).tril(before)
            bias_1HTP = bias_1HTP.masked_fill(~seen_TP, float("-inf"))
        absent_BL = ~encoder_attention_mask.bool()
        bias_BL = torch.zeros(absent_BL.shape).masked_fill(absent_BL, float("-inf"))
        x_BTD = self._stack.embed_tokens(input_ids).float()
        for index, block in enumerate(self._stack.block):
            own, cross, feed_forward = block.layer
            x_BTD = x_BTD + _read_tokens(own, x_BTD, bias_1HTP, past_key_values, index)
            x_BTD = x_BTD + _read_candidates(cross, x_BTD, encoder_hidden_states, bias_BL, past_key_values, index)
            x_BTD = x_BTD + _feed_forward(feed_forward, x_BTD)
        states_BTD = _normed(self._stack.final_layer_norm, x_BTD, encoder_hidden_states.dtype)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states_BTD, past_key_values=past_key_values)


def _read_tokens(part: Any, x_BTD: Tensor, bias_1HTP: Tensor, cache: EncoderDecoderCache, index: int) -> Tensor:
    own = part.SelfAttention
    normed_BTD = _normed(part.layer_norm, x_BTD, own.q.weight.dtype)
    q, k, v = (_heads(layer(normed_BTD), own.n_heads) for layer in (own.q, own.k, own.v))
    context_BTX = _attend(q, *cache.self_attention_cache.update(k, v, index), bias_1HTP)
    return own.o(context_BTX)  # type: ignore[no-any-return]


def _read_candidates(part: Any, x_BTD: Tensor, states_BLD: Tensor, bias_BL: Tensor, cache: Any, index: int) -> Tensor:
    """The beams of a row are queries of one product."""
    cross = part.EncDecAttention
    if not cache.is_updated.get(index):
        k, v = (_heads(layer(states_BLD), cross.n_heads).contiguous() for layer in (cross.k, cross.v))
        cache.cross_attention_cache.update(k, v, index)
        cache.is_updated[index] = True
    kept, (all_beams, count) = cache.cross_attention_cache.layers[index], x_BTD.shape[:2]
    beams = all_beams // len(kept.keys)
    q_BTX = cross.q(_normed(part.layer_norm, x_BTD, cross.q.weight.dtype))
    q = _heads(q_BTX.unflatten(0, (-1, beams)).flatten(1, 2), cross.n_heads)
    context = _attend(q, kept.keys, kept.values, bias_BL[::beams, None, None, :])
    return cross.o(context.unflatten(1, (beams, count)).flatten(0, 1))  # type: ignore[no-any-return]


def _feed_forward(part: Any, x_BTD: Tensor) -> Tensor:
    dense = part.DenseReluDense
    normed_BTD = _normed(part.layer_norm, x_BTD, dense.wo.weight.dtype)
    return dense.wo(activated(dense.act, *(layer(normed_BTD) for layer in inner_layers(dense))))  # type: ignore[no-any-return]


def _normed(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return fp32_norm(layer, x).to(dtype)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, X] → [B, H, T, E]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """[B, H, T, E] of each → [B, T, X]. By plain products: for so few queries PyTorch's own attention takes half as
    much time again in fp32, and two to six times as much in bf16."""
    weights = ((q @ k.transpose(2, 3)).float() + bias).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
