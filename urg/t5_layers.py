"""What the packed encoder and the packed decoder of a T5 have in common: the parts of a layer over a [S, D] matrix.

Through the library's own modules' weights, with gradients and dropout. Letters as in encoder.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from urg.layout import round_up
from urg.products import is_partitioned, product

Runs = list[tuple[int, int]]
"""(sequences, length) of each run of sequences of equal length, in the order of a matrix's rows."""


def self_attention(part: Any, x_SD: Tensor, runs: Runs, bias_HLL: Tensor) -> Tensor:
    """A layer's first part: every sequence attends to itself."""
    own = part.SelfAttention
    normed_SD = norm(part.layer_norm, x_SD)
    q_SHE, k_SHE, v_SHE = (heads(own, layer, normed_SD) for layer in (own.q, own.k, own.v))
    context_SHE = attend(q_SHE, k_SHE, v_SHE, runs, bias_HLL, own.dropout if own.training else 0.0)
    return x_SD + part.dropout(product(own.o, context_SHE.flatten(1)))


def feed_forward(part: Any, x_SD: Tensor) -> Tensor:
    """A layer's last part: gated (v1.1) or plain (v1.0)."""
    dense = part.DenseReluDense
    normed_SD = norm(part.layer_norm, x_SD)
    if hasattr(dense, "wi_0"):
        inner_SF = activate(dense.act, product(dense.wi_0, normed_SD)) * product(dense.wi_1, normed_SD)
    else:
        inner_SF = activate(dense.act, product(dense.wi, normed_SD))
    inner_SF = dense.dropout(inner_SF).to(dense.wo.weight.dtype)
    return x_SD + part.dropout(product(dense.wo, inner_SF))


def attend(q_SHE: Tensor, k_SHE: Tensor, v_SHE: Tensor, runs: Runs, bias_HLL: Tensor, dropout: float = 0.0) -> Tensor:
    """Every sequence attends to itself: [S, H, E]. A run of equal lengths is one call without a mask."""
    parts, sizes = [], [count * length for count, length in runs]
    filling = q_SHE.new_zeros(len(q_SHE) - sum(sizes), *q_SHE.shape[1:])
    pieces = zip(*(x[: sum(sizes)].split(sizes) for x in (q_SHE, k_SHE, v_SHE)), strict=True)
    for (count, length), piece in zip(runs, pieces, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in piece)
        bias = bias_HLL[:, :length, :length].to(q.dtype).unsqueeze(0)
        context_CHLE = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=1.0)
        parts.append(context_CHLE.transpose(1, 2).flatten(0, 1))
    return torch.cat([*parts, filling])


def heads(attention: Any, layer: Any, x_SD: Tensor) -> Tensor:
    """A projection of queries, keys or values, by heads: [S, H, E]."""
    return product(layer, x_SD).unflatten(-1, (attention.n_heads, -1))


def norm(layer: Any, x_SD: Tensor) -> Tensor:
    """T5's RMS norm, by PyTorch's own where it has the same dtype throughout."""
    if is_partitioned(layer) or x_SD.dtype != layer.weight.dtype:
        return layer(x_SD)  # type: ignore[no-any-return]
    return F.rms_norm(x_SD, x_SD.shape[-1:], layer.weight, layer.variance_epsilon)


def activate(act: Any, x: Tensor) -> Tensor:
    """The activation; the library's GELU of eight steps as PyTorch's one."""
    return F.gelu(x, approximate="tanh") if isinstance(act, NewGELUActivation) else act(x)


def filled_up(place_S: Tensor, rows: int) -> Tensor:
    """Places up to a multiple of `rows`; what is added stands for any token, and no sequence reads it."""
    return F.pad(place_S, (0, round_up(len(place_S), rows) - len(place_S)))
