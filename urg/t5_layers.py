"""What the packed encoder and the packed decoder of a T5 have in common: the parts of a layer over a [S, D] matrix.

By the library's own weights, with gradients and dropout. Letters as in encoder.py.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from urg.layout import round_up
from urg.products import is_partitioned, product, products

Runs = list[tuple[int, int]]
"""(sequences, length) of each run of sequences of equal length, in the order of a matrix's rows."""


def self_attention(part: Any, x_SD: Tensor, runs: Runs, bias_HLL: Tensor) -> Tensor:
    """A layer's first part: every sequence attends to itself."""
    own = part.SelfAttention
    projected = normed_products([own.q, own.k, own.v], part.layer_norm, x_SD)
    q_SHE, k_SHE, v_SHE = (x.unflatten(-1, (own.n_heads, -1)) for x in projected)
    context_SHE = attend(q_SHE, k_SHE, v_SHE, runs, bias_HLL, own.dropout if own.training else 0.0)
    return x_SD + part.dropout(product(own.o, context_SHE.flatten(1)))


def feed_forward(part: Any, x_SD: Tensor) -> Tensor:
    """A layer's last part: gated (v1.1) or plain (v1.0)."""
    dense = part.DenseReluDense
    layers = inner_layers(dense)
    inner = normed_products(layers, part.layer_norm, x_SD)
    rate = dense.dropout.p if dense.training else 0.0
    kept_SF = [torch.empty_like(inner[0], dtype=torch.bool).bernoulli_(1 - rate)] if rate else []
    before = functools.partial(_activated_and_dropped, dense.act, len(layers), 1 - rate, dense.wo.weight.dtype)
    return x_SD + part.dropout(products([dense.wo], before, *inner, *kept_SF)[0])


def inner_layers(dense: Any) -> list[Any]:
    """The feed-forward part's first products: two where it is gated (v1.1), or one (v1.0)."""
    return [dense.wi_0, dense.wi_1] if hasattr(dense, "wi_0") else [dense.wi]


def _activated_and_dropped(act: Any, gates: int, share: float, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """`activated`, under dropout's mask if there is one: the last input."""
    x_SF = activated(act, *inputs)
    return (x_SF / share if len(inputs) > gates else x_SF).to(dtype)


def activated(act: Any, first: Tensor, *others: Tensor) -> Tensor:
    """The activation of the first product, times the second if there is one."""
    # The library's GELU takes eight steps for what PyTorch's takes one.
    x = F.gelu(first, approximate="tanh") if isinstance(act, NewGELUActivation) else act(first)
    for other in others:
        x = x * other
    return x


def normed_products(layers: list[Any], norm_layer: Any, x_SD: Tensor) -> tuple[Tensor, ...]:
    """Linear layers over T5's RMS norm."""
    if is_partitioned(norm_layer):
        return products(layers, norm_layer, x_SD)
    return products(layers, functools.partial(_norm, norm_layer.variance_epsilon), x_SD, norm_layer.weight)


def norm(layer: Any, x_SD: Tensor) -> Tensor:
    """T5's RMS norm."""
    return layer(x_SD) if is_partitioned(layer) else _norm(layer.variance_epsilon, x_SD, layer.weight)


def fp32_norm(layer: Any, x: Tensor) -> Tensor:
    """T5's RMS norm of an fp32 x, in fp32 whatever the dtype of its weight."""
    return F.rms_norm(x, x.shape[-1:], layer.weight.float(), layer.variance_epsilon)


def _norm(epsilon: float, x_SD: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x_SD.to(weight.dtype), x_SD.shape[-1:], weight, epsilon)


def attend(q_SHE: Tensor, k_SHE: Tensor, v_SHE: Tensor, runs: Runs, bias_HLL: Tensor, dropout: float = 0.0) -> Tensor:
    """Every sequence attends to itself: [S, H, E]. A run of equal lengths is one call without a mask.

    Where the bias learns, in fp32, each sequence is a call: PyTorch's own attention has no fast way there, and copies.
    (In bf16 it takes the softmax in fp32, which is worth them.)
    """
    learns = bias_HLL.requires_grad and q_SHE.dtype in (torch.float32, torch.float64)
    calls = [(1, length) for count, length in runs for _ in range(count)] if learns else runs
    parts, sizes = [], [count * length for count, length in calls]
    filling = q_SHE.new_zeros(len(q_SHE) - sum(sizes), *q_SHE.shape[1:])
    pieces = zip(*(x[: sum(sizes)].split(sizes) for x in (q_SHE, k_SHE, v_SHE)), strict=True)
    for (count, length), piece in zip(calls, pieces, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in piece)
        bias = bias_HLL[:, :length, :length].to(q.dtype)
        if learns:
            weights_HLL = torch.baddbmm(bias, q[0], k[0].transpose(1, 2)).softmax(-1)
            context_CHLE = (F.dropout(weights_HLL, dropout) @ v[0]).unsqueeze(0)
        else:
            context_CHLE = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout, scale=1.0)
        parts.append(context_CHLE.transpose(1, 2).flatten(0, 1))
    return torch.cat([*parts, filling])


def filled_up(place_S: Tensor, rows: int) -> Tensor:
    """Places up to a multiple of `rows`; what is added stands for any token, and no sequence reads it."""
    return F.pad(place_S, (0, round_up(len(place_S), rows) - len(place_S)))
