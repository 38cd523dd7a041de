"""The experiments of `python -m urg.benchmark`, and the ratios that follow from each."""

from __future__ import annotations

import functools
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from urg.benchmarks.config import EXPERIMENTS, SAME_ENCODER, BenchmarkConfig
from urg.benchmarks.faults import measure_faults
from urg.benchmarks.fusing import measure_fusing
from urg.benchmarks.growth import measure_growth
from urg.benchmarks.rankers import ON_OUR_ENCODER, measure_rankers
from urg.benchmarks.ranking import measure_ranking
from urg.benchmarks.shapes import make_model
from urg.benchmarks.stack import measure_stack
from urg.benchmarks.training import measure_training, training_memory


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Every experiment that is asked for, and the ratios that follow."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted: tuple[str, ...] = (config.experiment,)
    if config.experiment == "all":  # a first answer has no time for whole trainings that are killed
        wanted = tuple(name for name in EXPERIMENTS if not (config.quick and name == "faults"))
    parts = {name: _EXPERIMENTS[name](config, device) for name in wanted}
    ratios = {key: value for name, part in parts.items() for key, value in _ratios(name, part).items()}
    missing = {name: "its experiment was not run" for name in RATIOS if name not in ratios}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": str(device)}
    return {
        "machine": machine | {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "config": asdict(config),
        "ratios": ratios,
        "missing": missing,
        **parts,
    }


def _rank(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    make = functools.partial(make_model, config.rank_shape)
    return measure_ranking(make, config.batches, config.n, config.repeats, device)


def _train(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    make = functools.partial(make_model, config.train_shape)
    timed = measure_training(make, config.train_rows, config.n, config.repeats, device)
    memory = training_memory(config.train_shape, config.train_rows, config.n, torch.get_num_threads())
    return {**timed, "bytes": memory}


def _complexity(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """PairRanker's encoder is a small one: all pairs of 48 candidates take minutes on a larger."""
    make = functools.partial(make_model, config.train_shape)
    encoder = "tiny" if config.ranker_shape == "tiny" else "t5-small"
    return measure_growth(make, encoder, min(config.batches), config.repeats, device)


def _rankers(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """All batch sizes on an accelerator; on a CPU the first, for the cost is that of the rows."""
    model = make_model(config.rank_shape).to(device)
    batches = config.batches if device.type == "cuda" else config.batches[:1]
    repeats = min(3, config.repeats)
    runs = {
        str(batch): measure_rankers(model, config.ranker_shape, batch, config.n, repeats, device) for batch in batches
    }
    return {"encoder": config.ranker_shape, "batches": runs}


def _fuse(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    make = functools.partial(make_model, config.rank_shape)
    return measure_fusing(make, config.batches[0], config.n, config.new_tokens, config.repeats, device)


def _stack(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    with _scratch(config) as work:
        return measure_stack(work, config.stack_steps, torch.get_num_threads())


def _faults(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    with _scratch(config) as work:
        return measure_faults(work, config.fault_steps, min(3, config.repeats))


@contextmanager
def _scratch(config: BenchmarkConfig) -> Iterator[Path]:
    """A folder below the output, for runs that are deleted with it."""
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.output) as work:
        yield Path(work).absolute()


_EXPERIMENTS = {
    "rank": _rank,
    "rankers": _rankers,
    "fuse": _fuse,
    "train": _train,
    "stack": _stack,
    "complexity": _complexity,
    "faults": _faults,
}
RANKED = [
    (f"rank_vs_{system.replace('pair_ranker', 'pairranker')}{same}{suffix}", dtype, system + same)
    for dtype, suffix in (("fp32", ""), ("bf16", "_bf16"))
    for same in ("", SAME_ENCODER)
    for system in ON_OUR_ENCODER
]
"""(ratio, dtype, system) of every ratio against another ranker."""
RATIOS = (
    "rank_vs_naive",
    "rank_bf16_vs_naive_fp32",
    *(ratio for ratio, _, _ in RANKED),
    "peak_share_fp32",
    "peak_share_bf16",
    "rank_step_share",
    "fuse_vs_genfuser",
    "fuse_vs_genfuser_bf16",
    "train_vs_naive3",
    "train_vs_naive1",
    "train_memory_vs_naive3",
    "stack_vs_bare",
    "n_exponent",
    "pairranker_n_exponent",
    "weak_scaling",
    "safety_overhead",
    "outage_step",
    "recovery_seconds",
)


def _ratios(experiment: str, part: dict[str, Any]) -> dict[str, float]:
    """The ratios of an experiment: above 1, ours is faster; of memory and shares, see their names."""
    if experiment == "rank":
        systems = part["runs"][0]["systems"]
        return {
            "rank_vs_naive": systems["obvious_fp32"]["seconds"] / systems["ours_fp32"]["seconds"],
            "rank_bf16_vs_naive_fp32": systems["obvious_fp32"]["seconds"] / systems["ours_bf16"]["seconds"],
            "peak_share_fp32": systems["ours_fp32"]["peak_share"],
            "peak_share_bf16": systems["ours_bf16"]["peak_share"],
            "rank_step_share": part["rank_step_share"],
        }
    if experiment == "train":
        seconds, memory = part["seconds"], part["bytes"]
        return {
            "train_vs_naive3": seconds["obvious_3"] / seconds["ours"],
            "train_vs_naive1": seconds["obvious_1"] / seconds["ours"],
            "train_memory_vs_naive3": memory["ours"]["peak"] / memory["obvious_3"]["peak"],
        }
    if experiment == "rankers":
        first = next(iter(part["batches"].values()))
        return {
            ratio: first[dtype]["urg"]["rows_per_s"] / first[dtype][system]["rows_per_s"]
            for ratio, dtype, system in RANKED
        }
    if experiment == "fuse":
        return {ratio: own["gen_fuser"] / own["ours"] for ratio, own in _fused(part)}
    if experiment == "stack":
        return {"stack_vs_bare": part["bare_seconds"] / part["stack_seconds"]}
    if experiment == "faults":
        return {
            "weak_scaling": part["weak_scaling"],
            "safety_overhead": part["overhead"],
            "outage_step": part["outage"]["after_seconds"] / part["outage"]["before_seconds"],
            "recovery_seconds": part["recovery"]["next_step"],
        }
    return {"n_exponent": part["n_exponent"], "pairranker_n_exponent": part["pair_ranker_full_n_exponent"]}


def _fused(part: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    suffixes = {"greedy_fp32": "", "greedy_bf16": "_bf16"}
    return [(f"fuse_vs_genfuser{suffix}", part["runs"][run]["seconds"]) for run, suffix in suffixes.items()]
