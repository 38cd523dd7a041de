"""T5's encoder over packed tokens: nothing is computed for padding.

All real tokens of a chunk stand in one [S, D] matrix, over which every linear layer is one product; only attention
takes the candidates apart, one call for each run of candidates of equal length, which needs no mask. Two ways, the same
result:

    encode_packed   with the stack's own weights: with gradients, dropout, checkpointing, ZeRO
    FrozenEncoder   (frozen_encoder.py) inference on a CPU: weights folded together and laid out once for the machine

On an accelerator many small attention calls cost more than some padding: `encode_padded` takes chunks of candidates of
like length through the stack as it is, and so it does with encoders that are no T5's.

Letters as in layout.py, and H heads, E width of a head, F width of the feed-forward layer.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from urg.devices import moved
from urg.layout import plan_chunks, round_up
from urg.t5_layers import Runs, feed_forward, filled_up, norm, self_attention

ROWS = 256
"""The rows of a chunk's matrix are a multiple of this: few distinct shapes, for each of which oneDNN compiles a kernel.
"""

Chunks = Iterator[tuple[Tensor, Tensor]]
"""Of each chunk: where its tokens stand among all, [S'], on the CPU; their states [S', D]."""


def encode_packed(stack: Any, tokens_S: Tensor, lengths: list[int], budget: int) -> Tensor:
    """Packed ids [S] of candidates of these lengths → packed states [S, D], in the same order.

    stack: a T5Stack that encodes (t5, mT5, ByT5). budget: real tokens that are encoded at once; bounds memory, changes
    no result. Source: URG, eq. 1.
    """
    return in_order(_packed_chunks(stack, tokens_S, lengths, budget), len(tokens_S))


def _packed_chunks(stack: Any, tokens_S: Tensor, lengths: list[int], budget: int) -> Chunks:
    bias_HLL = position_bias(stack, max(lengths))
    for place_S, runs in chunks(lengths, budget):
        x_SD = stack.dropout(stack.embed_tokens(tokens_S[filled_up(place_S, ROWS)]))
        for block in stack.block:
            if stack.gradient_checkpointing and stack.training:
                x_SD = checkpoint(_layer, block, x_SD, runs, bias_HLL, use_reentrant=False)
            else:
                x_SD = _layer(block, x_SD, runs, bias_HLL)
        x_SD = stack.dropout(norm(stack.final_layer_norm, x_SD))
        yield place_S, x_SD[: len(place_S)]


def encode_padded(stack: Any, tokens_S: Tensor, lengths: list[int], budget: int, longest: int = sys.maxsize) -> Tensor:
    """The same as `encode_packed`, by the forward pass of any encoder over chunks of at most `budget` padded tokens.

    longest: the tokens that the encoder has positions for, beyond which nothing is padded.
    """
    return in_order(_padded_chunks(stack, tokens_S, lengths, budget, longest), len(tokens_S))


def _padded_chunks(stack: Any, tokens_S: Tensor, lengths: list[int], budget: int, longest: int) -> Chunks:
    starts = torch.tensor([0, *lengths]).cumsum(0)
    for padded_length, members in plan_chunks(lengths, budget):
        length_C = torch.tensor([lengths[i] for i in members])
        position_L = torch.arange(min(padded_length, longest))
        mask_CL = position_L < length_C[:, None]
        place_CL = (starts[torch.tensor(members)][:, None] + position_L).masked_fill(~mask_CL, 0)
        yield place_CL[mask_CL], _encode_chunk(stack, tokens_S, place_CL, mask_CL)


def _encode_chunk(stack: Any, tokens_S: Tensor, place_CL: Tensor, mask_CL: Tensor) -> Tensor:
    """Padded candidates [C, L] → the states of their real tokens, in the order of `mask_CL`."""
    device, padded = tokens_S.device, not bool(mask_CL.all())
    mask = moved(mask_CL, device) if padded else None
    states_SD = stack(input_ids=tokens_S[moved(place_CL, device)], attention_mask=mask).last_hidden_state.flatten(0, 1)
    # The indices are found on the CPU: a boolean index would make an accelerator report its size.
    return states_SD[moved(mask_CL.flatten().nonzero().squeeze(1), device)] if padded else states_SD


def in_order(parts: Chunks, size: int) -> Tensor:
    """All states [S, D] of chunks in the packed order. size: S.

    Without a gradient each chunk's go to their places as soon as they are there, so that none is held twice.
    """
    if torch.is_grad_enabled():
        places, states = zip(*parts, strict=True)
        return torch.cat(states)[moved(torch.cat(places).argsort(), states[0].device)]
    whole_SD = torch.empty(0)
    for place_S, states_SD in parts:
        if not len(whole_SD):
            whole_SD = states_SD.new_empty(size, states_SD.shape[1])
        whole_SD[moved(place_S, states_SD.device)] = states_SD
    return whole_SD


def computed_tokens(lengths: list[int], budget: int, packed: bool) -> int:
    """Tokens that are computed to encode candidates of these lengths, what is filled up counted.

    packed: by `encode_packed`; else by `encode_padded`, or what pads as it does.
    """
    if not packed:
        return sum(length * len(members) for length, members in plan_chunks(lengths, budget))
    return sum(round_up(sum(lengths[i] for i in members), ROWS) for members in _members(lengths, budget))


def _layer(block: Any, x_SD: Tensor, runs: Runs, bias_HLL: Tensor) -> Tensor:
    """One layer of the stack: [S, D] → [S, D]."""
    return feed_forward(block.layer[-1], self_attention(block.layer[0], x_SD, runs, bias_HLL))


def position_bias(stack: Any, longest: int) -> Tensor:
    """The relative position bias that all layers share, [H, L, L]; shorter candidates take its corner."""
    return stack.block[0].layer[0].SelfAttention.compute_bias(longest, longest)[0]


def chunks(lengths: list[int], budget: int) -> Iterator[tuple[Tensor, Runs]]:
    """(places [S'] of a chunk's tokens, its runs), longest candidates first, at most `budget` tokens in a chunk.

    A candidate that is longer than the budget stands alone.
    """
    starts = [0, *itertools.accumulate(lengths)]
    for members in _members(lengths, budget):
        places = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in members])
        runs = [(len(list(group)), length) for length, group in itertools.groupby(lengths[i] for i in members)]
        yield places, runs


def _members(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """The candidates of each chunk."""
    members: list[int] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if members and size + lengths[index] > budget:
            yield members
            members, size = [], 0
        members.append(index)
        size += lengths[index]
    yield members
