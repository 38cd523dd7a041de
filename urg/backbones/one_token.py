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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from urg.products import is_partitioned


def cross_attention(
    q_BHE: Tensor, key: Any, value: Any, states_BLD: Tensor, mask_BL: Tensor, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmaxed weights [B, H, L] of one query a head over all tokens, and the values under them [B, H·E].

    q: scaled as the model scales it. key, value: linear layers from D to G·E. cap: logits become cap·tanh(logit / cap).
    """
    if is_partitioned(key):
        return _dense_cross_attention(q_BHE, key, value, states_BLD, mask_BL, cap)
    k_GED, v_GED = (layer.weight.float().unflatten(0, (-1, q_BHE.shape[-1])) for layer in (key, value))
    q_BGRE = q_BHE.unflatten(1, (len(k_GED), -1))
    absorbed_BHD = torch.einsum("bgre,ged->bgrd", q_BGRE, k_GED).flatten(1, 2)
    logits_BHL = absorbed_BHD @ states_BLD.transpose(1, 2)
    if cap is not None and key.bias is not None:
        bias_GE = key.bias.float().unflatten(0, (len(k_GED), -1))
        logits_BHL = logits_BHL + torch.einsum("bgre,ge->bgr", q_BGRE, bias_GE).flatten(1).unsqueeze(2)
    weights_BHL = _softmax(logits_BHL, mask_BL, cap)
    mixed_BGRD = (weights_BHL @ states_BLD).unflatten(1, (len(k_GED), -1))
    context_BGRE = torch.einsum("bgrd,ged->bgre", mixed_BGRD, v_GED)
    if value.bias is not None:
        context_BGRE = context_BGRE + value.bias.float().unflatten(0, (len(v_GED), 1, -1))
    return weights_BHL, context_BGRE.flatten(1)


def _dense_cross_attention(
    q_BHE: Tensor, key: Any, value: Any, states_BLD: Tensor, mask_BL: Tensor, cap: float | None
) -> tuple[Tensor, Tensor]:
    """The same by projecting every token."""
    k_BGLE, v_BGLE = (
        linear(layer, states_BLD).unflatten(-1, (-1, q_BHE.shape[-1])).transpose(1, 2) for layer in (key, value)
    )
    q_BGRE = q_BHE.unflatten(1, (k_BGLE.shape[1], -1))
    weights_BHL = _softmax((q_BGRE @ k_BGLE.transpose(2, 3)).flatten(1, 2), mask_BL, cap)
    return weights_BHL, (weights_BHL.unflatten(1, q_BGRE.shape[1:3]) @ v_BGLE).flatten(1)


def _softmax(logits_BHL: Tensor, mask_BL: Tensor, cap: float | None) -> Tensor:
    if cap is not None:
        logits_BHL = cap * torch.tanh(logits_BHL / cap)
    return logits_BHL.masked_fill(~mask_BL.unsqueeze(1), float("-inf")).softmax(-1)


def linear(layer: Any, x: Tensor) -> Tensor:
    """A linear layer in fp32."""
    if is_partitioned(layer):
        return layer(x.to(layer.weight.dtype)).float()
    return F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def layer_norm(layer: Any, x_BD: Tensor) -> Tensor:
    """A layer norm in fp32."""
    if is_partitioned(layer):
        return layer(x_BD.to(layer.weight.dtype)).float()
    return F.layer_norm(x_BD, x_BD.shape[-1:], layer.weight.float(), layer.bias.float(), layer.eps)
