"""T5's decoder, teacher-forced over packed target tokens: nothing is computed for padding, nor twice for one candidate.

The passes over several choices of candidates (the K selected; those and the last) are one matrix of target tokens. A
choice holds the one before it, so that keys and values are projected once for each token that is read, and every pass
reads the beginning of its row's. Cross-attention knows no positions, so that their order is free.

Letters as in encoder.py, and R target tokens of all passes, M tokens that are read, P real target tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from urg.layout import Layout
from urg.products import product
from urg.t5_layers import Runs, feed_forward, filled_up, norm, normed_products, self_attention

ROWS = 64
"""The rows of a matrix are a multiple of this, as in encoder.py; here there are fewer."""

Reads = list[list[int]]
"""For each row, how many of its tokens each pass reads; the last reads them all."""


def decode_packed(
    stack: Any, hidden_SD: Tensor, layout: Layout, choices_BN: Sequence[Tensor], inputs_BT: Tensor, lengths: list[int]
) -> list[Tensor]:
    """States [P, D] of each row's first tokens, `lengths` of them, given each choice of candidates.

    stack: a T5Stack that decodes. choices: each holds the one before it. inputs: the targets, shifted.
    """
    passes = len(choices_BN)
    place_M, reads = _reads(layout, choices_BN)
    memory_MD = hidden_SD[filled_up(place_M, ROWS)]
    computed = [max(1, length) for length in lengths]  # a row without a target keeps every weight in the graph
    place_R = torch.cat([torch.arange(n).repeat(passes) + b * inputs_BT.shape[1] for b, n in enumerate(computed)])
    x_RD = stack.dropout(stack.embed_tokens(inputs_BT.flatten()[filled_up(place_R, ROWS)]))
    bias_HTT = _causal_bias(stack, max(computed), x_RD.dtype)
    runs = [(passes, length) for length in computed]
    for block in stack.block:
        if stack.gradient_checkpointing and stack.training:
            x_RD = checkpoint(_layer, block, x_RD, memory_MD, runs, reads, bias_HTT, use_reentrant=False)
        else:
            x_RD = _layer(block, x_RD, memory_MD, runs, reads, bias_HTT)
    x_RD = stack.dropout(norm(stack.final_layer_norm, x_RD))
    by_row = x_RD[: len(place_R)].split([passes * n for n in computed])
    by_pass = zip(*(x.chunk(passes) for x in by_row), strict=True)
    return [torch.cat([x[:n] for x, n in zip(own, lengths, strict=True)]) for own in by_pass]


def _layer(block: Any, x_RD: Tensor, memory_MD: Tensor, runs: Runs, reads: Reads, bias_HTT: Tensor) -> Tensor:
    x_RD = self_attention(block.layer[0], x_RD, runs, bias_HTT)
    x_RD = _cross_attention(block.layer[1], x_RD, memory_MD, runs, reads)
    return feed_forward(block.layer[2], x_RD)


def _cross_attention(part: Any, x_RD: Tensor, memory_MD: Tensor, runs: Runs, reads: Reads) -> Tensor:
    """Every pass of a row attends to what it reads."""
    own = part.EncDecAttention
    q_RHE = normed_products([own.q], part.layer_norm, x_RD)[0].unflatten(-1, (own.n_heads, -1))
    sizes_R = [count * length for count, length in runs]
    q_rows, filling = q_RHE[: sum(sizes_R)].split(sizes_R), q_RHE.new_zeros(len(q_RHE) - sum(sizes_R), own.inner_dim)
    dropout = own.dropout if own.training else 0.0
    k_rows, v_rows = (
        _by_row(product(layer, memory_MD).unflatten(-1, (own.n_heads, -1)), reads) for layer in (own.k, own.v)
    )
    contexts = []
    for q_row, k_row, v_row, sizes in zip(q_rows, k_rows, v_rows, reads, strict=True):
        for q, size in zip(q_row.chunk(len(sizes)), sizes, strict=True):
            q_HTE, k_HLE, v_HLE = (x.transpose(0, 1).unsqueeze(0) for x in (q, k_row[:size], v_row[:size]))
            context = F.scaled_dot_product_attention(q_HTE, k_HLE, v_HLE, dropout_p=dropout, scale=1.0)
            contexts.append(context[0].transpose(0, 1).flatten(1))
    context_RX = torch.cat([*contexts, filling])
    return x_RD + part.dropout(product(own.o, context_RX))


def _by_row(x_MHE: Tensor, reads: Reads) -> tuple[Tensor, ...]:
    """The tokens of each row apart."""
    sizes = [row[-1] for row in reads]
    return x_MHE[: sum(sizes)].split(sizes)


def _reads(layout: Layout, choices_BN: Sequence[Tensor]) -> tuple[Tensor, Reads]:
    """Places [M] of the tokens that are read, row by row, those of the first choice first; and how many of a row each
    choice reads."""
    chosen_BL = [choice_BN.gather(1, layout.owner_BL) & layout.mask_BL for choice_BN in choices_BN]
    times_BL = torch.stack(chosen_BL).sum(0)
    order_BL = times_BL.argsort(dim=1, descending=True, stable=True)
    place_BL = layout.token_BL.gather(1, order_BL)
    place_M = place_BL[times_BL.gather(1, order_BL) > 0]
    return place_M, torch.stack([chosen.sum(1) for chosen in chosen_BL], 1).tolist()


def _causal_bias(stack: Any, longest: int, dtype: torch.dtype) -> Tensor:
    """The relative position bias that all layers share, [H, T, T], −∞ for what is to come."""
    bias_HTT = stack.block[0].layer[0].SelfAttention.compute_bias(longest, longest)[0].to(dtype)
    return bias_HTT.masked_fill(torch.ones(longest, longest, dtype=torch.bool).triu(1), float("-inf"))
