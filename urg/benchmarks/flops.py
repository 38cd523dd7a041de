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


def ranked_lengths(system: str, n: int, question: int, response: int) -> list[int]:
    """Tokens of each sequence that a ranker encodes for a query of n candidates of these lengths (§3.5)."""
    alone, pair = question + response, question + 2 * response
    return {
        "urg": [alone] * n,
        "simcls": [question, *[response] * n],
        "summareranker": [alone] * n,
        "pair_ranker_full": [pair] * (n * (n - 1)),
        "pair_ranker_bubble": [pair] * (2 * (n - 1)),
    }[system]
