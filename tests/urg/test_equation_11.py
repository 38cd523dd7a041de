"""The whole objective, equation 11: value and every gradient, against the equations for one query at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from urg.batching import Batch
from urg.layout import Layout
from urg.loss_config import LossConfig
from urg.objective import Counts, loss_terms, total_loss

Queries = list[list[Tensor]]
Pack = Callable[[Queries], tuple[Tensor, Layout]]
K, NAN = 2, float("nan")
QUALITY = [[-2.0, -1.0, -3.5, -1.0, -0.5], [0.0], [0.3, NAN, 0.1], [NAN, 1.0], [4.0, 3.0, 2.0, 1.0]]
LENGTHS = [4, 2, 3, 1, 4]  # target tokens of each query


def slow_terms(
    slow: Any, query: list[Tensor], r: list[float], target: list[int], config: LossConfig
) -> dict[str, Tensor]:
    """Equations 7, 9 and 10 of one query, as sums."""
    states = slow.states(query)
    s = slow.scores(states)
    rank = torch.zeros((), dtype=torch.float64)
    for i in range(len(s)):
        for j in range(len(s)):
            if r[i] < r[j]:
                rank = rank + torch.clamp(s[i] - s[j], min=0)
    order = sorted(range(len(s)), key=lambda i: (-s[i].item(), i))
    e_tk = [states[i] for i in order[:K]]
    p_TV = slow.logits(e_tk, target)
    terms = {"rank": rank, "ce": -sum(p_TV[j].log_softmax(-1)[t] for j, t in enumerate(target))}
    if len(s) <= K:
        return terms
    q_TV = slow.logits([*e_tk, states[order[-1]]], target)
    terms["ce_last"] = -sum(q_TV[j].log_softmax(-1)[t] for j, t in enumerate(target))
    terms["kl"] = torch.zeros((), dtype=torch.float64)
    for j in range(len(target)):
        z, z_q = p_TV[j].detach(), q_TV[j]
        top = sorted(range(len(z)), key=lambda n: -z[n].item())[: config.m]
        p_sum, q_sum = (sum(torch.exp(x[i] / config.tau) for i in top) for x in (z, z_q))
        for n in top:
            p, q = torch.exp(z[n] / config.tau) / p_sum, torch.exp(z_q[n] / config.tau) / q_sum
            terms["kl"] = terms["kl"] + p * torch.log(p / q)
    return terms


def slow_total(slow: Any, queries: Queries, targets: Tensor, config: LossConfig) -> Tensor:
    """γ L_rank + β L_kl + L_ce of a batch: `sum` is a mean over queries, `mean` one over a term's target tokens."""
    rows = [
        slow_terms(slow, query, QUALITY[b], targets[b, : LENGTHS[b]].tolist(), config)
        for b, query in enumerate(queries)
    ]
    with_last = sum(length for length, query in zip(LENGTHS, queries, strict=True) if len(query) > K)
    mean = config.reduction == "mean"
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        total = total + config.gamma * row["rank"] / len(rows)
        total = total + row["ce"] / (sum(LENGTHS) if mean else len(rows))
        if "kl" in row:
            later = config.beta * row["kl"] + row["ce_last"]
            total = total + later / (with_last if mean else len(rows))
    return total


def collated(pack: Pack, queries: Queries, targets: Tensor) -> Batch:
    tokens_S, layout = pack(queries)
    quality_BN = torch.full(layout.tokens_BN.shape, NAN)
    for b, row in enumerate(QUALITY):
        quality_BN[b, : len(row)] = torch.tensor(row)
    mask_BT = torch.arange(targets.shape[1]) < torch.tensor(LENGTHS)[:, None]
    return Batch(
        tokens_S=tokens_S,
        layout=layout,
        target_BT=targets * mask_BT,
        target_P=mask_BT.flatten().nonzero().squeeze(1),
        quality_BN=quality_BN,
        weight_B=torch.ones(len(queries)),
    )


def both_losses(
    model: Any, slow: Any, pack: Pack, queries: Queries, targets: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Ours and the equations', the gradients of both computed."""
    batch = collated(pack, queries, targets)
    counts = Counts.of(np.array(LENGTHS), np.array([len(query) for query in queries]), K, config.reduction)
    output = model(batch.tokens_S, batch.layout, batch.target_BT, target_P=batch.target_P)
    loss = total_loss(loss_terms(output, batch, config, counts), config)
    expected = slow_total(slow, queries, targets, config)
    loss.backward()
    expected.backward()
    return loss.detach(), expected.detach()


@pytest.mark.parametrize("gamma", [5.0, 500.0])  # at 5 the rank term is a small part of the gradient
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("family", ["t5", "flan"])
def test_the_objective_and_its_gradient_are_equation_11(
    family: str, reduction: str, gamma: float, build: Any, pack: Pack, queries: Queries, targets: Tensor, eager: Any
) -> None:
    model = build(family, K)
    slow = eager(model)
    config = LossConfig(gamma=gamma, m=5, reduction=reduction)
    loss, expected = both_losses(model, slow, pack, queries, targets, config)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    reference = dict(slow.t5.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in reference.values() if p.grad is not None)
    assert math.isfinite(largest)
    assert largest > 0
    for name, parameter in model.t5.named_parameters():
        bound = 1e-3 * max(float(reference[name].grad.abs().max()), 1e-3 * largest)
        error = (parameter.grad.double() - reference[name].grad).abs().max()
        assert error <= bound, name


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("family", ["t5", "flan", "mt5", "byt5"])
def test_in_double_precision_nothing_but_rounding_is_left(
    family: str,
    reduction: str,
    build: Any,
    pack: Pack,
    queries: Queries,
    targets: Tensor,
    eager: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where ours says fp32, and transformers' norms say it too, it is made double."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    for norm in (T5LayerNorm, MT5LayerNorm):
        monkeypatch.setattr(norm, "forward", lambda self, x: F.rms_norm(x, x.shape[-1:], self.weight, 1e-6))
    model = build(family, K).double()
    slow = eager(model)
    config = LossConfig(gamma=50.0, m=5, reduction=reduction)
    loss, expected = both_losses(model, slow, pack, queries, targets, config)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    reference = dict(slow.t5.named_parameters())
    for name, parameter in model.t5.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-7, atol=1e-10)
