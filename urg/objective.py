"""The whole training objective (URG, eq. 11), normalised by the counts of the *global* batch.

Each worker adds up its own micro-batches' sums; dividing by counts that are known from the data alone, before any
forward pass, makes the gradient that of the global batch, whatever the accumulation, padding and number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from urg.batching import Batch
from urg.config import LossConfig
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
    mask_BT, terms = batch.target_mask_BT, {}
    if output.p_logits_BTV is not None:
        terms["ce"] = _sum(token_cross_entropy(output.p_logits_BTV, batch.target_BT), mask_BT) / counts.tokens
    if config.gamma > 0:
        rank_B = rank_loss(
            output.scores_BN, batch.layout.tokens_BN, batch.quality_BN, config.rank_loss, config.rank_scale
        )
        terms["rank"] = (rank_B * batch.weight_B).sum() / counts.queries
    if output.p_logits_BTV is None or output.q_logits_BTV is None:
        return terms
    mask_BT = mask_BT & output.has_last_B.unsqueeze(1)
    if config.second_ce:
        ce_BT = token_cross_entropy(output.q_logits_BTV, batch.target_BT)
        terms["ce_last"] = _sum(ce_BT, mask_BT) / counts.tokens_with_last
    if config.beta > 0:
        kl_BT = top_m_kl(output.p_logits_BTV, output.q_logits_BTV, config.m, config.tau, config.kl_teacher)
        tau_squared = config.tau**2 if config.kl_tau_squared else 1.0
        terms["kl"] = tau_squared * _sum(kl_BT, mask_BT) / counts.tokens_with_last
    return terms


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


def _sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return values_BT.masked_fill(~mask_BT, 0.0).sum()
