"""The one-step ranking: how much of the first decoder step's cross-attention falls on each candidate (URG, eq. 5–6).

One decoder step from the start token attends to all real tokens of all candidates of a query together;
    s_i = mean over layers, heads and the tokens of candidate i of the softmaxed cross-attention
(or over the last layer alone, or the tokens of its response alone: not the paper's),
always in fp32 (but for projections under ZeRO-3, which lends weights in their own dtype only), before dropout.

Each candidate was encoded alone and cross-attention knows no positions, so the scores are equivariant to the order of
the candidates. What a layer does with the token is its backbone's (backbones/); keys and values are never projected.

Letters as in layout.py, and D model width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from urg.backbones.protocol import Backbone
from urg.devices import moved
from urg.layout import Layout, plan_chunks
from urg.products import is_partitioned


def ranking_scores(
    backbone: Backbone, hidden_SD: Tensor, layout: Layout, layers: str = "all", tokens: str = "all"
) -> Tensor:
    """s of each candidate: fp32 [B, N], 0 where there is no candidate; Σ s·L = 1 over a query where all tokens count.

    hidden: the encoder's output for the packed tokens. layers: whose attention counts, `all` or `last`. tokens: those
    on which it counts, `all` or `response`.
    """
    return _scores(backbone, hidden_SD[layout.token_BL].float(), layout, layers, tokens)


def _scores(backbone: Backbone, states_BLD: Tensor, layout: Layout, layers: str, tokens: str) -> Tensor:
    """The scores of the queries whose states these are."""
    rows, width, device = *states_BLD.shape[:2], states_BLD.device
    x_BD = backbone.start(torch.full((rows,), backbone.start_id, device=device))
    attention_BL = torch.zeros(rows, width, device=device)
    for layer in backbone.layers:
        x_BD, mean_BL = _checkpointed(backbone, layer, x_BD, states_BLD, layout.mask_BL)
        attention_BL = mean_BL if layers == "last" else attention_BL + mean_BL
    attention_BL = attention_BL / (1 if layers == "last" else len(backbone.layers))
    tokens_BN = layout.tokens_BN
    if tokens == "response":
        attention_BL = attention_BL * layout.response_BL
        tokens_BN = torch.zeros_like(tokens_BN).scatter_add(1, layout.owner_BL, layout.response_BL.to(tokens_BN.dtype))
    mass_BN = attention_BL.new_zeros(layout.tokens_BN.shape).scatter_add(1, layout.owner_BL, attention_BL)
    return mass_BN / tokens_BN.clamp_min(1)


def ranking_scores_by_groups(
    backbone: Backbone, hidden_SD: Tensor, layout: Layout, layers: str, tokens: str, budget: int
) -> Tensor:
    """`ranking_scores`, a group of queries of like length after the other, for use without a gradient.

    budget: tokens of a group at most, padding counted, but for a query that has more by itself: that one's states are
    read where they stand, and attended to in parts. Bounds memory, changes no result.
    """
    sizes = [sum(row) for row in layout.lengths]
    starts = [0, *itertools.accumulate(sizes)]
    parts, order = [], []
    for _, rows in plan_chunks(sizes, budget):
        own, first = layout.rows(rows), rows[0]
        if len(rows) == 1:
            states_BLD = hidden_SD[starts[first] : starts[first + 1]].unsqueeze(0)
        else:
            states_BLD = hidden_SD[own.token_BL].float()
        parts.append(_scores(backbone, states_BLD, own, layers, tokens))
        order += rows
    return torch.cat(parts)[moved(torch.tensor(order).argsort(), hidden_SD.device)]


def _checkpointed(
    backbone: Backbone, layer: nn.Module, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """A decoder layer; where its weights must be cast to fp32, the copies are made again in the backward pass, not
    kept."""
    casts = next(layer.parameters()).dtype != torch.float32
    if torch.is_grad_enabled() and casts and not is_partitioned(layer):
        return checkpoint(backbone.layer_step, layer, x_BD, states_BLD, mask_BL, use_reentrant=False)
    return backbone.layer_step(layer, x_BD, states_BLD, mask_BL)
