"""§3.5 measured: how the time of ranking grows with the number of candidates, ours and PairRanker's, and ours with
their length, beside the operations of the encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from urg.benchmarks.clock import Timing, in_turn
from urg.benchmarks.flops import encoder_flops, ranked_lengths
from urg.benchmarks.rankers import RANKINGS, frozen_rankers, pair_lengths
from urg.benchmarks.workload import Row, batch_of, draw_rows
from urg.devices import moved
from urg.model import URG

COUNTS = (4, 8, 16, 32, 48)
RESPONSE_TOKENS = (16.0, 32.0, 64.0)
SYSTEMS = ("urg", "simcls", "summareranker", "pair_ranker_full", "pair_ranker_bubble")


def measure_growth(
    make: Callable[[], URG], encoder: Any, rows: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Seconds and operations for each N and each mean length, and the fitted exponents of both.

    encoder: the configuration of a T5, on whose encoder PairRanker compares all pairs of one row, once for each N; None
    for that of the model.
    """
    model = make().to(device).freeze()
    config = model.t5.config
    pairs = _pairs(config if encoder is None else encoder, device)
    by_n = {str(n): draw_rows(rows, n, int(config.vocab_size), seed=n) for n in COUNTS}
    by_length = {}
    for response in RESPONSE_TOKENS:
        drawn = draw_rows(rows, 12, int(config.vocab_size), seed=12, response_tokens=response)
        by_length[f"{np.mean(_lengths(drawn)):.1f}"] = drawn
    n, length = (_grown(model, drawn, repeats, device) for drawn in (by_n, by_length))
    sizes = [float(tokens) for tokens in by_length]
    counted = {
        name: [encoder_flops(config, ranked_lengths(name, count, 20, 66)) for count in COUNTS] for name in SYSTEMS
    }
    return {
        "seconds_by_n": n["seconds"],
        "spread_by_n": n["spread"],
        "flops_by_n": n["flops"],
        **{f"pair_ranker_full_{key}_by_n": values for key, values in pairs.items()},
        "seconds_by_length": length["seconds"],
        "spread_by_length": length["spread"],
        "flops_by_length": length["flops"],
        "n_exponent": exponent(COUNTS, list(n["seconds"].values())),
        "pair_ranker_full_n_exponent": exponent(COUNTS, list(pairs["seconds"].values())),
        "length_exponent": exponent(sizes, list(length["seconds"].values())),
        "analytic_n_exponent": {name: exponent(COUNTS, flops) for name, flops in counted.items()},
        "analytic_length_exponent": exponent(sizes, list(length["flops"].values())),
    }


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a · size^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _grown(model: URG, drawn: dict[str, list[Row]], repeats: int, device: torch.device) -> dict[str, dict[str, float]]:
    """By size: seconds, spread and operations of ranking its rows."""
    timings = in_turn({size: _ranking(model, rows, device) for size, rows in drawn.items()}, repeats, device)
    flops = {size: encoder_flops(model.t5.config, _lengths(rows)) for size, rows in drawn.items()}
    return {**_told(timings), "flops": flops}


def _pairs(encoder: Any, device: torch.device) -> dict[str, dict[str, float]]:
    """By N: seconds in which PairRanker compares all pairs of one row, and operations."""
    system = "pair_ranker_full"
    model = frozen_rankers((system,), encoder, device)[system]
    rows = {str(n): draw_rows(1, n, int(encoder.vocab_size), seed=n) for n in COUNTS}
    calls = {n: functools.partial(RANKINGS[system], model, drawn) for n, drawn in rows.items()}
    flops = {n: encoder_flops(encoder, pair_lengths(drawn[0])) for n, drawn in rows.items()}
    return {**_told(in_turn(calls, 1, device)), "flops": flops}


def _told(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    return {
        "seconds": {size: timing.median for size, timing in timings.items()},
        "spread": {size: timing.spread for size, timing in timings.items()},
    }


def _lengths(rows: list[Row]) -> list[int]:
    return [len(ids) for row in rows for ids in row.candidates()]


def _ranking(model: URG, rows: list[Row], device: torch.device) -> Callable[[], object]:
    batch = moved(batch_of(rows), device)

    @torch.inference_mode()
    def rank() -> object:
        return model.rank(model.encode(batch.tokens_S, batch.layout), batch.layout)

    return rank
