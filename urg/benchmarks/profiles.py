"""Where the time of a ranking batch and of a training step goes: the operators of PyTorch by their own time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from urg.benchmarks.ranking import DTYPES, packed_ranker
from urg.benchmarks.training import training_step
from urg.benchmarks.workload import draw_rows
from urg.model import URG

SHOWN = 12
"""Operators that are told."""


def measure_profiles(rank: URG, train: URG, rows: int, train_rows: int, n: int, device: torch.device) -> dict[str, Any]:
    """The most expensive operators of ranking `rows` rows, in fp32 and bf16, and of a training step of `train_rows`."""
    drawn = draw_rows(rows, n, int(rank.t5.config.vocab_size), seed=rows)
    calls: dict[str, Callable[[], object]] = {}
    for name, dtype in DTYPES.items():
        ranker = packed_ranker(copy.deepcopy(rank).to(device, dtype))
        calls[f"ranking {rows} rows, {name}"] = lambda ranker=ranker: ranker(drawn, device)  # type: ignore[misc]
    calls[f"training step, {train_rows} rows, fp32"] = training_step("ours", train.to(device), train_rows, n, device)
    return {name: profiled(call, device) for name, call in calls.items()}


def profiled(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Operators of a call, the most expensive one first: name, calls, seconds of its own, and its share of all.

    Seconds are the accelerator's where there is one; else those of the thread that calls, by the clock.
    """
    call()
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as found:
        call()
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    operators = sorted(found.key_averages(), key=lambda own: -getattr(own, key))
    total = max(1.0, sum(getattr(own, key) for own in operators))
    return [
        {
            "operator": own.key,
            "calls": own.count,
            "seconds": getattr(own, key) / 1e6,
            "share": getattr(own, key) / total,
        }
        for own in operators[:SHOWN]
    ]
