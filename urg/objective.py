"""The whole training objective (URG, eq. 11), normalised by the counts of the *global* batch.

Each worker adds up its own micro-batches' sums; dividing by counts that are known from the data alone, before any
forward pass, makes the gradient that of the global batch, whatever the accumulation, padding and number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from urg.batching import Batch
from urg.loss_config import LossConfig
from urg.losses import rank_loss, token_cross_entropy, top_m_kl
from urg.model import Output


@dataclass(frozen=True)
class Counts:
    """What the sums of a global batch are divided by."""

    queries: int
    """Rows."""
    tokens: int
    """Target tokens of all rows: of the CE given the K best."""
    tokens_with_last: int
    """Target tokens of rows that have more than K candidates: of the second CE and the KL."""

    @classmethod
    def of(cls, target_tokens_B: np.ndarray, n_candidates_B: np.ndarray, k: int, reduction: str) -> Counts:
        """Counts of the rows of a global batch; `sum` divides by queries alone (the paper's literal form)."""
        rows = len(target_tokens_B)
        if reduction == "sum":
            return cls(rows, rows, rows)
        with_last = target_tokens_B[n_candidates_B > k]
        return cls(rows, max(1, int(target_tokens_B.sum())), max(1, int(with_last.sum())))


def loss_terms(output: Output, batch: Batch, config: LossConfig, counts: Counts) -> dict[str, Tensor]:
    """This micro-batch's share of each term of the global batch, unweighted: scalars `rank`, `ce`, `ce_last`, `kl`.

    Terms that the configuration switches off are left out. Summed over all micro-batches and workers, they are the
    global means.
    """
    values = token_losses(output, batch.real_targets, config)
    terms = {"ce": values["ce"].sum() / counts.tokens} if "ce" in values else {}
    if config.gamma > 0:
        rank_B = rank_loss(
            output.scores_BN,
            batch.layout.tokens_BN,
            batch.quality_BN,
            config.rank_loss,
            config.rank_scale,
            quality_scale=config.quality_scale,
            temperature=config.temperature,
        )
        terms["rank"] = (rank_B * batch.weight_B).sum() / counts.queries
    has_last_P = output.has_last_B[batch.target_P // batch.target_BT.shape[1]]
    factors = {"ce_last": 1.0, "kl": config.tau**2 if config.kl_tau_squared else 1.0}
    for name, factor in factors.items():
        if name in values:
            terms[name] = factor * values[name].masked_fill(~has_last_P, 0.0).sum() / counts.tokens_with_last
    return terms


def token_losses(output: Output, target_P: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Each generation term of each real target token, unweighted and in fp32: `ce`, `ce_last`, `kl`, [P]; none of them
    where nothing was decoded.

    Logits are made for so many tokens at once as `output` says. Where those are not all, they are made again in the
    backward pass, and never kept: [P, V] in fp32, several times over, would be most of a step's memory.
    """
    p_PD, q_PD, teacher_PD = output.p_states_PD, output.q_states_PD, output.teacher_states_PD
    if p_PD is None:
        return {}
    size = max(1, output.tokens_at_once // (1 + (q_PD is not None) + (teacher_PD is not None)))
    if len(target_P) <= size:
        return _token_losses(output.head, p_PD, q_PD, teacher_PD, target_P, config)
    count = -(-len(target_P) // size)
    q_parts, teacher_parts = ([None] * count if x is None else x.split(size) for x in (q_PD, teacher_PD))
    parts = [
        checkpoint(_token_losses, output.head, *own, config, use_reentrant=False, preserve_rng_state=False)
        for own in zip(p_PD.split(size), q_parts, teacher_parts, target_P.split(size), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _token_losses(
    head: Callable[[Tensor], Tensor],
    p_PD: Tensor,
    q_PD: Tensor | None,
    teacher_PD: Tensor | None,
    target_P: Tensor,
    config: LossConfig,
) -> dict[str, Tensor]:
    """`token_losses` of some tokens, p and q projected together. The KL's teacher is p where there is no other."""
    if q_PD is None:
        return {"ce": token_cross_entropy(head(p_PD), target_P)}
    p_PV, q_PV = head(torch.cat((p_PD, q_PD))).chunk(2)
    losses = {"ce": token_cross_entropy(p_PV, target_P)}
    if config.second_ce:
        losses["ce_last"] = token_cross_entropy(q_PV, target_P)
    if config.beta > 0:
        if teacher_PD is not None:
            with torch.no_grad():
                p_PV = head(teacher_PD)
        losses["kl"] = top_m_kl(p_PV, q_PV, config.m, config.tau, config.kl_teacher)
    return losses


def total_loss(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """γ·rank + β·kl + ce + ce_last: eq. 11."""
    return weighted_sum(terms, term_weights(config))


def term_weights(config: LossConfig) -> dict[str, float]:
    """The weight of each term that `loss_terms` may give."""
    return {"rank": config.gamma, "kl": config.beta, "ce": 1.0, "ce_last": 1.0}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight · term: a scalar."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def needs_last(config: LossConfig) -> bool:
    """Whether the configuration uses the pass over the K best and the last."""
    return config.generation and (config.second_ce or config.beta > 0)


def needs_teacher(config: LossConfig) -> bool:
    """Whether the KL's teacher is a pass of its own, without dropout."""
    return config.generation and config.beta > 0 and not config.teacher_dropout


def guide(batch: Batch, config: LossConfig, seed: int, step: int, rows: np.ndarray) -> Tensor | None:
    """What training selects by: fp32 [B, N]; None, and NaN in it, mean the predicted score.

    `gold` uses the label and puts unlabelled candidates last (a row without any label goes by prediction); `schedule`
    gives a row gold with a probability that falls from 1 to 0. Draws are keyed by (seed, step, row), so that they do
    not depend on the number of workers. rows: the rows' indices.
    """
    if config.selection == "predicted":
        return None
    drawn_BN = np.full(tuple(batch.quality_BN.shape), 0.0, dtype=np.float32)
    for b, row in enumerate(rows):
        drawn_BN[b] = np.random.default_rng((seed, step, int(row))).random(drawn_BN.shape[1])
    random_BN = torch.from_numpy(drawn_BN).to(batch.quality_BN.device)
    if config.selection == "random":
        return random_BN
    has_label_B1 = ~batch.quality_BN.isnan().all(1, keepdim=True)
    gold_BN = torch.where(has_label_B1, torch.nan_to_num(batch.quality_BN, nan=float("-inf")), batch.quality_BN)
    if config.selection == "gold":
        return gold_BN
    keeps_gold_B1 = random_BN[:, :1] < 1 - step / config.schedule_steps
    return torch.where(keeps_gold_B1, gold_BN, torch.full_like(gold_BN, float("nan")))
