"""§3.5 measured: how the time of ranking grows with the number of candidates, ours and PairRanker's, and ours with
their length."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from urg.benchmarks.clock import in_turn
from urg.benchmarks.flops import ranked_tokens
from urg.benchmarks.rankers import RANKINGS, encoder_config, frozen_rankers
from urg.benchmarks.workload import batch_of, draw_rows
from urg.model import URG

COUNTS = (4, 8, 16, 32, 48)
RESPONSE_TOKENS = (16.0, 32.0, 64.0)
SYSTEMS = ("urg", "simcls", "summareranker", "pair_ranker_full", "pair_ranker_bubble")


def measure_growth(
    make: Callable[[], URG], encoder: str, rows: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Seconds for each N and each mean length, the fitted exponents, and the analytic ones of every ranker. encoder:
    of PairRanker, which compares all pairs of one row, once for each N."""
    pairs_seconds = _pairs_seconds(encoder, device)
    model = make().to(device).freeze()
    by_n = {n: _ranking(model, rows, n, 66.0, device) for n in COUNTS}
    by_length = {length: _ranking(model, rows, 12, length, device) for length in RESPONSE_TOKENS}
    n_seconds = {n: timing.median for n, timing in in_turn(_named(by_n), repeats, device).items()}
    length_seconds = {x: timing.median for x, timing in in_turn(_named(by_length), repeats, device).items()}
    analytic = {name: exponent(COUNTS, [ranked_tokens(name, n, 20.0, 66.0) for n in COUNTS]) for name in SYSTEMS}
    return {
        "seconds_by_n": n_seconds,
        "pair_ranker_full_seconds_by_n": pairs_seconds,
        "seconds_by_mean_response_tokens": length_seconds,
        "n_exponent": exponent(COUNTS, list(n_seconds.values())),
        "pair_ranker_full_n_exponent": exponent(COUNTS, list(pairs_seconds.values())),
        "length_exponent": exponent(RESPONSE_TOKENS, list(length_seconds.values())),
        "analytic_n_exponent": analytic,
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a · size^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _named(calls: dict[Any, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    return {str(size): call for size, call in calls.items()}


def _pairs_seconds(encoder: str, device: torch.device) -> dict[str, float]:
    """Seconds in which PairRanker compares all pairs of one row, by N."""
    system, words = "pair_ranker_full", 32_000
    model = frozen_rankers((system,), encoder_config(encoder), device)[system]
    calls = {str(n): functools.partial(RANKINGS[system], model, draw_rows(1, n, words, seed=n)) for n in COUNTS}
    return {n: timing.median for n, timing in in_turn(calls, 1, device).items()}


def _ranking(model: URG, rows: int, n: int, response_tokens: float, device: torch.device) -> Callable[[], object]:
    drawn = draw_rows(rows, n, int(model.t5.config.vocab_size), seed=n, response_tokens=response_tokens)
    batch = batch_of(drawn).to(device)

    @torch.inference_mode()
    def rank() -> object:
        return model.rank(model.encode(batch.tokens_S, batch.layout), batch.layout)

    return rank
