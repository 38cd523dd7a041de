"""URG's losses: pure functions, tensors in, tensors out.

Letters: B queries, N candidates of a query, T target tokens, V vocabulary. Reductions are left to the caller, who knows
the counts of the *global* batch: every function returns one value a query [B] or a token [B, T], so that gradient
accumulation, padding and the number of workers cannot change a gradient.

Adding a ranking loss is a function, a line in RANK_LOSSES, and a test.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# --------------------------------------------------------------------------------------------------------------------
# Scales: what the loss sees of the attention scores s (eq. 6). γ does not carry over from one scale to another.


def attention_scale(scores_BN: Tensor, tokens_BN: Tensor) -> Tensor:
    """The paper's s: mean attention a token, about 1/ΣL. [B, N] → [B, N]."""
    return scores_BN


def mass_scale(scores_BN: Tensor, tokens_BN: Tensor) -> Tensor:
    """s·L: the share of the whole attention that falls on a candidate; sums to 1 over a query. [B, N] → [B, N]."""
    return scores_BN * tokens_BN


def unit_scale(scores_BN: Tensor, tokens_BN: Tensor) -> Tensor:
    """s·ΣL: 1 for a candidate that gets its fair share of attention a token. [B, N] → [B, N]."""
    return scores_BN * tokens_BN.sum(1, keepdim=True)


def log_scale(scores_BN: Tensor, tokens_BN: Tensor) -> Tensor:
    """log(s·ΣL): a logit, 0 for a fair share; finite at padding. [B, N] → [B, N]."""
    return torch.log(unit_scale(scores_BN, tokens_BN).clamp_min(torch.finfo(scores_BN.dtype).tiny))


def log_mass_scale(scores_BN: Tensor, tokens_BN: Tensor) -> Tensor:
    """log(s·L): a logit of the share of the whole attention, not divided by length; finite at padding. [B, N] →
    [B, N]."""
    return torch.log(mass_scale(scores_BN, tokens_BN).clamp_min(torch.finfo(scores_BN.dtype).tiny))


RANK_SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": attention_scale,
    "mass": mass_scale,
    "unit": unit_scale,
    "log": log_scale,
    "log_mass": log_mass_scale,
}

# --------------------------------------------------------------------------------------------------------------------
# Ranking losses: (scores [B, N], quality [B, N], mask [B, N]) → [B]. quality: higher is better, never a rank position.


def _pairs(quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """[B, N, N]: true at (i, j) where candidate j is strictly better than candidate i and both are real."""
    better = quality_BN.unsqueeze(1) > quality_BN.unsqueeze(2)
    return better & mask_BN.unsqueeze(1) & mask_BN.unsqueeze(2)


def hinge_loss(scores_BN: Tensor, quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Σ over pairs with r_i < r_j of max(0, s_i − s_j), a query. Ties in quality give 0. Source: URG, eq. 7."""
    excess_BNN = scores_BN.unsqueeze(2) - scores_BN.unsqueeze(1)
    return (F.relu(excess_BNN) * _pairs(quality_BN, mask_BN)).sum((1, 2))


def margin_loss(scores_BN: Tensor, quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """The hinge with a margin that grows with the distance in rank: max(0, s_i − s_j + (rank_i − rank_j)/N), a query.

    rank 0 is the best; candidates of equal quality share a rank. Source: Liu & Liu 2021 (SimCLS), eq. 2.
    """
    pairs_BNN = _pairs(quality_BN, mask_BN)
    rank_BN = pairs_BNN.sum(2).to(scores_BN.dtype)
    n_B11 = mask_BN.sum(1).clamp_min(1).view(-1, 1, 1)
    margin_BNN = (rank_BN.unsqueeze(2) - rank_BN.unsqueeze(1)) / n_B11
    excess_BNN = scores_BN.unsqueeze(2) - scores_BN.unsqueeze(1) + margin_BNN
    return (F.relu(excess_BNN) * pairs_BNN).sum((1, 2))


def logistic_loss(scores_BN: Tensor, quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Σ over pairs with r_i < r_j of log(1 + exp(s_i − s_j)), a query. Source: Burges et al. 2005 (RankNet)."""
    excess_BNN = scores_BN.unsqueeze(2) - scores_BN.unsqueeze(1)
    return (F.softplus(excess_BNN) * _pairs(quality_BN, mask_BN)).sum((1, 2))


def listnet_loss(
    scores_BN: Tensor,
    quality_BN: Tensor,
    mask_BN: Tensor,
    temperature: float = 0.1,
    quality_scale: str = "minmax",
) -> Tensor:
    """Cross-entropy of softmax(quality / temperature) with softmax(scores): the probability to be the best, a query.

    quality is first brought to 0..1 within its query (QUALITY_SCALES), so that `temperature` means the same for
    BERTScore and BARTScore. Source: Cao et al. 2007 (ListNet, top one).
    """
    unit_BN = QUALITY_SCALES[quality_scale](quality_BN, mask_BN)
    target_BN = torch.softmax(_mask_out(unit_BN / temperature, mask_BN), 1)
    log_p_BN = torch.log_softmax(_mask_out(scores_BN, mask_BN), 1)
    return -(target_BN * log_p_BN).masked_fill(~mask_BN, 0.0).sum(1)


def listmle_loss(scores_BN: Tensor, quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """−log probability of the true order under the Plackett–Luce model of the scores, a query; ties by index.

    Source: Xia et al. 2008 (ListMLE).
    """
    order_BN = torch.sort(_mask_out(quality_BN, mask_BN), dim=1, descending=True, stable=True).indices
    sorted_BN = _mask_out(scores_BN, mask_BN).gather(1, order_BN)
    real_BN = mask_BN.gather(1, order_BN)
    log_rest_BN = torch.logcumsumexp(sorted_BN.flip(1), 1).flip(1)
    return (log_rest_BN - sorted_BN).masked_fill(~real_BN, 0.0).sum(1)


def _mask_out(values_BN: Tensor, mask_BN: Tensor) -> Tensor:
    return values_BN.masked_fill(~mask_BN, torch.finfo(values_BN.dtype).min / 2)


def minmax_quality(quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Quality mapped to 0..1 within each query; 0 where all are equal."""
    low_B1 = quality_BN.masked_fill(~mask_BN, float("inf")).amin(1, keepdim=True)
    high_B1 = quality_BN.masked_fill(~mask_BN, float("-inf")).amax(1, keepdim=True)
    span_B1 = (high_B1 - low_B1).clamp_min(torch.finfo(quality_BN.dtype).tiny)
    return ((quality_BN - low_B1) / span_B1).masked_fill(~mask_BN, 0.0)


def rank_quality(quality_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """The places within each query from the worst, 0, to the best, 1, at equal distances; equals share the middle of
    their places. 0 where all are equal. Only the order of `quality` matters."""
    better_BNN = _pairs(quality_BN, mask_BN)
    return minmax_quality((better_BNN.sum(1) - better_BNN.sum(2)).to(quality_BN.dtype), mask_BN)


QUALITY_SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"minmax": minmax_quality, "rank": rank_quality}
"""What ListNet's target is made of; the other losses see nothing but the order of `quality`."""

RANK_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "hinge": hinge_loss,
    "margin": margin_loss,
    "logistic": logistic_loss,
    "listnet": listnet_loss,
    "listmle": listmle_loss,
}


def rank_loss(
    scores_BN: Tensor,
    tokens_BN: Tensor,
    quality_BN: Tensor,
    loss: str = "hinge",
    scale: str = "attention",
    *,
    quality_scale: str = "minmax",
    temperature: float = 0.1,
) -> Tensor:
    """A ranking loss of attention scores under a scale, a query: [B]. `hinge` and `attention` are the paper's.

    tokens: real tokens of each candidate, 0 for padding. quality: higher is better; NaN = no label: that candidate is
    left out of the loss. A query with fewer than two labelled candidates gives 0. quality_scale and temperature are of
    ListNet's target alone. Raises KeyError for an unknown name.
    """
    mask_BN = (tokens_BN > 0) & ~quality_BN.isnan()
    scaled_BN = RANK_SCALES[scale](scores_BN, tokens_BN.to(scores_BN.dtype))
    quality_BN = quality_BN.to(scores_BN.dtype).masked_fill(~mask_BN, 0.0)
    if loss == "listnet":
        return listnet_loss(scaled_BN, quality_BN, mask_BN, temperature, quality_scale)
    return RANK_LOSSES[loss](scaled_BN, quality_BN, mask_BN)


# --------------------------------------------------------------------------------------------------------------------
# Generation losses: a value for each target token, [B, T]; packed tokens [P] are as good.


def token_cross_entropy(logits_BTV: Tensor, target_BT: Tensor) -> Tensor:
    """−log p(t_j | t_<j) of each target token, in fp32: [B, T]. Source: URG, eq. 10."""
    return F.cross_entropy(logits_BTV.float().flatten(0, -2), target_BT.flatten(), reduction="none").view_as(target_BT)


def top_m_kl(p_logits_BTV: Tensor, q_logits_BTV: Tensor, m: int, tau: float, teacher: str = "detached") -> Tensor:
    """KL(p‖q) over p's m most likely tokens, both renormalised over them at temperature τ, in fp32: [B, T].

    p: logits given the K best candidates; q: given those plus the last. Equation 8 says "probabilities"; logits are
    what can work (at τ=2 probabilities in 0..1 cap every ratio at 1.65). No factor τ². teacher: `detached` stops the
    gradient through p, `joint` lets it pass. m larger than V means all of V. Source: URG, eq. 8–9.
    """
    p_logits_BTV = p_logits_BTV.detach() if teacher == "detached" else p_logits_BTV
    top_BTm, ids_BTm = p_logits_BTV.float().topk(min(m, p_logits_BTV.shape[-1]), dim=-1)
    log_p_BTm = torch.log_softmax(top_BTm / tau, -1)
    log_q_BTm = torch.log_softmax(q_logits_BTV.gather(-1, ids_BTm).float() / tau, -1)
    return (log_p_BTm.exp() * (log_p_BTm - log_q_BTm)).sum(-1)
