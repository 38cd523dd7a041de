"""The one-step ranking: how much of the first decoder step's cross-attention falls on each candidate (URG, eq. 5–6).

One decoder step from the start token attends to all real tokens of all candidates of a query together;
    s_i = mean over layers, heads and the tokens of candidate i of the softmaxed cross-attention,
always in fp32 (but for projections under ZeRO-3, which lends weights in their own dtype only).

The step has a single query a head, so keys and values are never projected:
    q · (W_k h) = (W_kᵀ q) · h        and        Σ α (W_v h) = W_v (Σ α h),
which turns two products over all tokens and layers into two over one token a layer. T5 scales q·k by 1 and has no
position bias in cross-attention, so the scores are equivariant to the order of the candidates.

Letters as in layout.py, and D model width, H heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from urg.layout import Layout


def ranking_scores(decoder: Any, start_id: int, hidden_SD: Tensor, layout: Layout) -> Tensor:
    """s of each candidate: fp32 [B, N], 0 where there is no candidate; Σ s·L = 1 over a query.

    decoder: a T5 decoder stack; start_id: the decoder start token; hidden: the encoder's output for the packed tokens.
    """
    states_BLD = hidden_SD[layout.token_BL].float()
    start = torch.full((states_BLD.shape[0],), start_id, device=hidden_SD.device)
    x_BD = decoder.dropout(decoder.embed_tokens(start).float())
    attention_BL = states_BLD.new_zeros(states_BLD.shape[:2])
    for block in decoder.block:
        x_BD, mean_BL = _checkpointed(block, x_BD, states_BLD, layout.mask_BL)
        attention_BL = attention_BL + mean_BL
    mass_BN = attention_BL.new_zeros(layout.tokens_BN.shape)
    mass_BN = mass_BN.scatter_add(1, layout.owner_BL, attention_BL / len(decoder.block))
    return mass_BN / layout.tokens_BN.clamp_min(1)


def _checkpointed(block: nn.Module, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """A decoder layer; where its weights must be cast to fp32, the copies are made again in the backward pass, not
    kept."""
    casts = next(block.parameters()).dtype != torch.float32
    if torch.is_grad_enabled() and casts and not _is_partitioned(block):
        return checkpoint(_decoder_layer, block, x_BD, states_BLD, mask_BL, use_reentrant=False)
    return _decoder_layer(block, x_BD, states_BLD, mask_BL)


def _decoder_layer(block: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The first token's way through one layer: ([B, D], the attention's mean over heads [B, L]), in fp32."""
    own, cross, feed_forward = block.layer
    value_BD = _linear(own.SelfAttention.v, _norm(own.layer_norm, x_BD))  # one token attends to itself with weight 1
    x_BD = x_BD + own.dropout(_linear(own.SelfAttention.o, value_BD))
    weights_BHL, context_BD = _cross_attention(
        cross.EncDecAttention, _norm(cross.layer_norm, x_BD), states_BLD, mask_BL
    )
    x_BD = x_BD + cross.dropout(context_BD)
    x_BD = x_BD + feed_forward.dropout(_feed_forward(feed_forward.DenseReluDense, _norm(feed_forward.layer_norm, x_BD)))
    return x_BD, weights_BHL.mean(1)


def _cross_attention(attention: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Softmaxed weights [B, H, L] of one query over all tokens, and the layer's output [B, D]."""
    q_BHE = _linear(attention.q, x_BD).unflatten(-1, (attention.n_heads, -1))
    if _is_partitioned(attention):
        return _dense_cross_attention(attention, q_BHE, states_BLD, mask_BL)
    k_HED, v_HED = (
        weight.float().unflatten(0, (attention.n_heads, -1)) for weight in (attention.k.weight, attention.v.weight)
    )
    absorbed_BHD = torch.einsum("bhe,hed->bhd", q_BHE, k_HED)
    weights_BHL = _softmax(absorbed_BHD @ states_BLD.transpose(1, 2), mask_BL)
    context_BHE = torch.einsum("bhd,hed->bhe", weights_BHL @ states_BLD, v_HED)
    return weights_BHL, _linear(attention.o, context_BHE.flatten(1))


def _dense_cross_attention(attention: Any, q_BHE: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The same by projecting every token, where ZeRO-3 lends the weights only to a module's own call."""
    k_BHLE, v_BHLE = (
        _linear(projection, states_BLD).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
        for projection in (attention.k, attention.v)
    )
    weights_BHL = _softmax((k_BHLE @ q_BHE.unsqueeze(-1)).squeeze(-1), mask_BL)
    context_BHE = (weights_BHL.unsqueeze(2) @ v_BHLE).squeeze(2)
    return weights_BHL, _linear(attention.o, context_BHE.flatten(1))


def _softmax(logits_BHL: Tensor, mask_BL: Tensor) -> Tensor:
    return logits_BHL.masked_fill(~mask_BL.unsqueeze(1), float("-inf")).softmax(-1)


def _feed_forward(layer: Any, x_BD: Tensor) -> Tensor:
    """T5's feed-forward layer in fp32: gated (v1.1) or plain (v1.0)."""
    if hasattr(layer, "wi_0"):
        inner = layer.act(_linear(layer.wi_0, x_BD)) * _linear(layer.wi_1, x_BD)
    else:
        inner = layer.act(_linear(layer.wi, x_BD))
    return _linear(layer.wo, layer.dropout(inner))


def _linear(layer: Any, x: Tensor) -> Tensor:
    """A bias-free linear layer in fp32, whatever the dtype of its weights."""
    if _is_partitioned(layer):
        return layer(x.to(layer.weight.dtype)).float()
    return F.linear(x, layer.weight.float())


def _norm(layer: Any, x_BD: Tensor) -> Tensor:
    """T5's RMS norm in fp32, whatever the dtype of its weight."""
    if _is_partitioned(layer):
        return layer(x_BD).float()
    return F.rms_norm(x_BD, (x_BD.shape[-1],), layer.weight.float(), layer.variance_epsilon)


def _is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 has spread this module's weights over the workers."""
    return hasattr(next(module.parameters()), "ds_id")
