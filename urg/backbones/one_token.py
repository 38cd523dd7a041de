"""What the first decoder token meets on its way through a layer, in fp32 whatever the dtype of the weights.

The ranking step has a single query a head, so keys and values are never projected:
    q · (W_k h + b_k) = (W_kᵀ q) · h + q · b_k        and        Σ α (W_v h + b_v) = W_v (Σ α h) + b_v,
which turns two products over all tokens and layers into two over one token a layer. The key's bias adds the same to all
tokens, so that it drops out of the softmax, unless the logits are capped first.

Under ZeRO-3 weights are spread over the workers and lent to a module's own call only: there, modules are called whole
and in their own dtype, and keys and values are projected.

Letters as in layout.py, and D model width, H heads, E width of a head, G heads of key and value (H is a multiple of
it), R = H / G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urg.frozen_encoder import FrozenLinear
from urg.products import is_partitioned

ATTENDED_AT_ONCE = 16384
"""Tokens of a row that are attended to at once where nothing is learnt: a row that has more is taken in parts, so that
what is made of them does not grow with it."""


def cross_attention(
    q_BHE: Tensor, key: Any, value: Any, states_BLD: Tensor, mask_BL: Tensor, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The softmaxed weight that one query a head gives each token, mean over heads [B, L], and the values under it
    [B, H·E].

    q: scaled as the model scales it. key, value: linear layers from D to G·E. cap: logits become cap·tanh(logit / cap).
    """
    if is_partitioned(key):
        return _dense_cross_attention(q_BHE, key, value, states_BLD, mask_BL, cap)
    k_GED, v_GED = (_weight(layer).unflatten(0, (-1, q_BHE.shape[-1])) for layer in (key, value))
    q_BGRE = q_BHE.unflatten(1, (len(k_GED), -1))
    absorbed_BHD = torch.einsum("bgre,ged->bgrd", q_BGRE, k_GED).flatten(1, 2)
    bias_BH1 = None
    if cap is not None and key.bias is not None:
        bias_GE = key.bias.float().unflatten(0, (len(k_GED), -1))
        bias_BH1 = torch.einsum("bgre,ge->bgr", q_BGRE, bias_GE).flatten(1).unsqueeze(2)

    def logits(states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        logits_BHL = absorbed_BHD @ states_BLD.transpose(1, 2)
        return _bounded(logits_BHL if bias_BH1 is None else logits_BHL + bias_BH1, mask_BL, cap)

    mean_BL, mixed_BHD = _attended(logits, states_BLD, mask_BL)
    context_BGRE = torch.einsum("bgrd,ged->bgre", mixed_BHD.unflatten(1, q_BGRE.shape[1:3]), v_GED)
    if value.bias is not None:
        context_BGRE = context_BGRE + value.bias.float().unflatten(0, (len(v_GED), 1, -1))
    return mean_BL, context_BGRE.flatten(1)


def _attended(logits: Callable[[Tensor, Tensor], Tensor], states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of `logits`, mean over heads [B, L], and the states under it [B, H, D]; all in fp32."""
    if states_BLD.shape[1] <= ATTENDED_AT_ONCE or states_BLD.requires_grad:
        states_BLD = states_BLD.float()
        weights_BHL = logits(states_BLD, mask_BL).softmax(-1)
        return weights_BHL.mean(1), weights_BHL @ states_BLD
    return _attended_in_parts(logits, states_BLD.split(ATTENDED_AT_ONCE, 1), mask_BL.split(ATTENDED_AT_ONCE, 1))


def _attended_in_parts(
    logits: Callable[[Tensor, Tensor], Tensor], states: Sequence[Tensor], masks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same, its logits made twice: the first time for the logarithm of their sum alone."""
    sums = [logits(own_BLD.float(), own_BL).logsumexp(-1) for own_BLD, own_BL in zip(states, masks, strict=True)]
    sum_BH1 = torch.stack(sums).logsumexp(0).unsqueeze(-1)
    means, mixed_BHD = [], torch.zeros((), device=sum_BH1.device)
    for own_BLD, own_BL in zip(states, masks, strict=True):
        own_BLD = own_BLD.float()
        weights_BHL = (logits(own_BLD, own_BL) - sum_BH1).exp()
        means.append(weights_BHL.mean(1))
        mixed_BHD = mixed_BHD + weights_BHL @ own_BLD
    return torch.cat(means, 1), mixed_BHD


def _dense_cross_attention(
    q_BHE: Tensor, key: Any, value: Any, states_BLD: Tensor, mask_BL: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """The same by projecting every token."""
    k_BGLE, v_BGLE = (
        linear(layer, states_BLD).unflatten(-1, (-1, q_BHE.shape[-1])).transpose(1, 2) for layer in (key, value)
    )
    q_BGRE = q_BHE.unflatten(1, (k_BGLE.shape[1], -1))
    weights_BHL = _bounded((q_BGRE @ k_BGLE.transpose(2, 3)).flatten(1, 2), mask_BL, cap).softmax(-1)
    return weights_BHL.mean(1), (weights_BHL.unflatten(1, q_BGRE.shape[1:3]) @ v_BGLE).flatten(1)


def _bounded(logits_BHL: Tensor, mask_BL: Tensor, cap: float | None) -> Tensor:
    """Capped, and −∞ where there is no token."""
    if cap is not None:
        logits_BHL = cap * torch.tanh(logits_BHL / cap)
    return logits_BHL.masked_fill(~mask_BL.unsqueeze(1), float("-inf"))


def linear(layer: Any, x: Tensor) -> Tensor:
    """A linear layer in fp32."""
    if is_partitioned(layer):
        return layer(x.to(layer.weight.dtype)).float()
    if layer.weight.dtype == torch.float32:
        return layer(x)  # type: ignore[no-any-return]
    return F.linear(x, _weight(layer), None if layer.bias is None else layer.bias.float())


def _weight(layer: Any) -> Tensor:
    """A linear layer's, [out, in], in fp32."""
    return (layer.plain_weight() if isinstance(layer, FrozenLinear) else layer.weight).float()


def layer_norm(layer: Any, x_BD: Tensor) -> Tensor:
    """A layer norm in fp32."""
    if is_partitioned(layer):
        return layer(x_BD.to(layer.weight.dtype)).float()
    return F.layer_norm(x_BD, x_BD.shape[-1:], layer.weight.float(), layer.bias.float(), layer.eps)
