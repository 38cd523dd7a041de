"""Arithmetic of an encoder, for shares of the machine's peak and for §3.5's growth: multiplications and additions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encoder_flops(config: Any, lengths: Sequence[int]) -> float:
    """Useful operations of a T5 encoder on candidates of these lengths: products with weights, and attention."""
    inner = config.num_heads * config.d_kv
    feed_forward = (3 if config.is_gated_act else 2) * config.d_model * config.d_ff
    a_token = 2 * (4 * config.d_model * inner + feed_forward)
    attention = sum(4 * length * length * inner for length in lengths)
    return float(config.num_layers * (a_token * sum(lengths) + attention))


def ranked_tokens(system: str, n: int, question: float, response: float) -> float:
    """Tokens that a ranker encodes for a query of n candidates of mean lengths: what its cost grows with (§3.5)."""
    return {
        "urg": n * (question + response),
        "simcls": question + n * response,
        "summareranker": n * (question + response),
        "pair_ranker_full": n * (n - 1) * (question + 2 * response),
        "pair_ranker_bubble": 2 * (n - 1) * (question + 2 * response),
    }[system]
