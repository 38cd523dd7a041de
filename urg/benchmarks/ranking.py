"""Ranking: ours beside the obvious code, in fp32 and bf16, and where our time goes (Tables 4 and 7)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from urg.benchmarks.clock import Timing, in_turn, matmul_peak
from urg.benchmarks.flops import encoder_flops
from urg.benchmarks.obvious import ObviousURG
from urg.benchmarks.workload import Row, batch_of, draw_rows, padded
from urg.devices import moved
from urg.model import URG

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_ranking(
    make: Callable[[], URG], batches: tuple[int, ...], n: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Seconds of each variant at each batch size, with the peak beside them, and the ratios at the first size."""
    model = make().to(device)
    vocab_size = int(model.t5.config.vocab_size)
    variants = {
        f"{kind}_{name}": ranker(kind, copy.deepcopy(model).to(dtype))
        for kind in ("ours", "obvious")
        for name, dtype in DTYPES.items()
    }
    runs = []
    for size in batches:
        rows = draw_rows(size, n, vocab_size, seed=size)
        peak = {name: matmul_peak(dtype, device) for name, dtype in DTYPES.items()}
        calls = {name: _bound(rank, rows, device) for name, rank in variants.items()}
        timings = in_turn(calls, repeats, device)
        peak_after = {name: matmul_peak(dtype, device) for name, dtype in DTYPES.items()}
        runs.append(_run(size, rows, timings, peak, peak_after, model))
    return {
        "runs": runs,
        "same_ranking": _agreement(variants, draw_rows(min(16, 2 * batches[0]), n, vocab_size, seed=1), device),
        "rank_step": {
            name: _step_share(
                copy.deepcopy(model).to(dtype), draw_rows(batches[0], n, vocab_size, seed=2), repeats, device
            )
            for name, dtype in DTYPES.items()
        },
    }


def ranker(kind: str, model: URG) -> Callable[[list[Row], torch.device], Tensor]:
    """rows → scores [B, N]; making the input's tensors is part of it. kind: `ours`, which freezes the model, or
    `obvious`, which copies it."""
    if kind == "obvious":
        obvious = ObviousURG(model)
        obvious.t5.eval()

        def rank_padded(rows: list[Row], device: torch.device) -> Tensor:
            ids_BNL, mask_BNL = padded(rows)
            return obvious.rank(moved(ids_BNL, device), moved(mask_BNL, device))

        return rank_padded
    return packed_ranker(model)


def packed_ranker(model: URG) -> Callable[[list[Row], torch.device], Tensor]:
    """Ours: rows → scores [B, N]. The model is frozen."""
    model.freeze()

    @torch.inference_mode()
    def rank(rows: list[Row], device: torch.device) -> Tensor:
        batch = moved(batch_of(rows), device)
        return model.rank(model.encode(batch.tokens_S, batch.layout), batch.layout)

    return rank


def _bound(rank: Callable[..., Tensor], rows: list[Row], device: torch.device) -> Callable[[], Tensor]:
    return lambda: rank(rows, device)


def _run(
    size: int,
    rows: list[Row],
    timings: Mapping[str, Timing],
    peak: Mapping[str, float],
    after: Mapping[str, float],
    model: URG,
) -> dict[str, Any]:
    """One batch size: medians, spreads, rows/s, and useful operations as a share of the peak."""
    lengths = [len(ids) for row in rows for ids in row.candidates()]
    flops = encoder_flops(model.t5.config, lengths)
    shown: dict[str, Any] = {"batch": size, "tokens": sum(lengths), "longest": max(lengths), "systems": {}}
    for name, timing in timings.items():
        dtype = name.rsplit("_", 1)[1]
        best = max(peak[dtype], after[dtype])
        shown["systems"][name] = {
            "seconds": timing.median,
            "spread": timing.spread,
            "rows_per_s": size / timing.median,
            "peak_share": flops / timing.median / best,
        }
    shown["peak_gflops"] = {name: [peak[name] / 1e9, after[name] / 1e9] for name in peak}
    return shown


def _agreement(
    variants: Mapping[str, Callable[..., Tensor]], rows: list[Row], device: torch.device
) -> dict[str, dict[str, float]]:
    """Of each variant against the obvious code in fp32: largest relative difference of a score, and of how many rows
    the candidates stand in the same order."""
    reference = variants["obvious_fp32"](rows, device).float()
    found = {}
    for name, rank in variants.items():
        scores = rank(rows, device).float()
        same = (scores.argsort(1) == reference.argsort(1)).all(1).sum()
        found[name] = {
            "largest_relative_difference": float(((scores - reference).abs() / reference).max()),
            "rows_in_the_same_order": int(same),
            "rows": len(rows),
        }
    return found


@torch.inference_mode()
def _step_share(model: URG, rows: list[Row], repeats: int, device: torch.device) -> dict[str, float]:
    """The one decoder step's share of the whole ranking time, median of the repeats, and its spread."""
    own = model.freeze()
    batch = moved(batch_of(rows), device)
    hidden_SD = own.encode(batch.tokens_S, batch.layout)
    parts = {
        "encode": lambda: own.encode(batch.tokens_S, batch.layout),
        "step": lambda: own.rank(hidden_SD, batch.layout),
    }
    seconds = {name: timing.seconds for name, timing in in_turn(parts, repeats, device).items()}
    pairs = zip(seconds["encode"], seconds["step"], strict=True)
    shares = Timing(tuple(step / (encode + step) for encode, step in pairs))
    return {"share": shares.median, "spread": shares.spread}
