"""Measure URG beside the obvious code: `python -m urg.benchmark --output DIR`.

Writes DIR/benchmark.json (`ratios`, `missing` with the reason, and every measurement behind them) and prints a table.
Random weights in a T5's shape: nothing is downloaded, and nothing is said of quality. Run it on a quiet machine: the
peak of a matrix product before and after each part tells whether it was one.
"""

from __future__ import annotations

import functools
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

EXPERIMENTS = ("rank", "train", "complexity")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time, how often, and where to put the result."""

    output: str = "runs/benchmark"
    """Folder for benchmark.json."""
    experiment: Literal["all", "rank", "train", "complexity"] = "all"
    """One experiment, or all of them."""
    rank_shape: str = "t5-base"
    """Shape for ranking (tiny, t5-small, t5-base, t5-large, t5-xl; random weights), or a model folder."""
    train_shape: str = "t5-small"
    """Shape for training, or a model folder."""
    batches: tuple[int, ...] = (8, 16, 32)
    """Rows of a batch in ranking; the ratios are those of the first."""
    n: int = 12
    """Candidates of a row."""
    train_rows: int = 4
    """Rows of a training step."""
    repeats: int = 5
    """How often each variant runs, in turn with the others; medians are reported."""
    threads: int | None = None
    """Torch threads on a CPU; null: one a core."""
    quick: bool = False
    """A first answer: small shapes, one batch size, three repeats."""

    def __post_init__(self) -> None:
        if min(self.n, self.train_rows, self.repeats, *self.batches) < 1 or not self.batches:
            raise UserError("batches, n, train_rows and repeats must be 1 or more.")
        if self.n <= 4:
            raise UserError(f"n={self.n}: give more than four candidates, for training takes K=3 and a last one.")


def main(config: BenchmarkConfig) -> None:
    """Time ranking, training and growth, ours beside the obvious code, and write benchmark.json."""
    import torch

    if config.quick:
        config = _quick(config)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    output = Path(config.output).expanduser().absolute()
    result = measure(config)
    output.mkdir(parents=True, exist_ok=True)
    (output / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(result)))
    print(f"results: {output / 'benchmark.json'}")


def _quick(config: BenchmarkConfig) -> BenchmarkConfig:
    import dataclasses

    return dataclasses.replace(config, rank_shape="t5-small", batches=(4,), train_rows=2, repeats=3)


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Every experiment that is asked for, and the ratios that follow."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = EXPERIMENTS if config.experiment == "all" else (config.experiment,)
    parts = {name: _EXPERIMENTS[name](config, device) for name in wanted}
    ratios = {key: value for name, part in parts.items() for key, value in _ratios(name, part).items()}
    missing = {name: _MISSING.get(name, "its experiment was not asked for") for name in RATIOS if name not in ratios}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": str(device)}
    return {
        "machine": machine | {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "config": asdict(config),
        "ratios": ratios,
        "missing": missing,
        **parts,
    }


def _rank(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    from urg.benchmarks.ranking import measure_ranking
    from urg.benchmarks.shapes import make_model

    make = functools.partial(make_model, config.rank_shape)
    return measure_ranking(make, config.batches, config.n, config.repeats, device)


def _train(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    import torch

    from urg.benchmarks.shapes import make_model
    from urg.benchmarks.training import measure_training, training_memory

    make = functools.partial(make_model, config.train_shape)
    timed = measure_training(make, config.train_rows, config.n, config.repeats, device)
    memory = training_memory(config.train_shape, config.train_rows, config.n, torch.get_num_threads())
    return {**timed, "peak_bytes": memory}


def _complexity(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    from urg.benchmarks.growth import measure_growth
    from urg.benchmarks.shapes import make_model

    make = functools.partial(make_model, config.train_shape)
    return measure_growth(make, min(config.batches), config.repeats, device)


_EXPERIMENTS = {"rank": _rank, "train": _train, "complexity": _complexity}

_SYSTEM = "this system is not part of the benchmark yet"
_MISSING = {
    "rank_vs_pairranker_full": _SYSTEM,
    "rank_vs_pairranker_bubble": _SYSTEM,
    "rank_vs_simcls": _SYSTEM,
    "fuse_vs_genfuser": _SYSTEM,
    "stack_vs_bare": "the trained stack is not part of the benchmark yet",
}
RATIOS = (
    "rank_vs_naive",
    "rank_bf16_vs_naive_fp32",
    "rank_vs_pairranker_full",
    "rank_vs_pairranker_bubble",
    "rank_vs_simcls",
    "peak_share_fp32",
    "peak_share_bf16",
    "rank_step_share",
    "fuse_vs_genfuser",
    "train_vs_naive3",
    "train_vs_naive1",
    "train_memory_vs_naive3",
    "stack_vs_bare",
    "n_exponent",
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
        seconds, peak = part["seconds"], part["peak_bytes"]
        return {
            "train_vs_naive3": seconds["obvious_3"] / seconds["ours"],
            "train_vs_naive1": seconds["obvious_1"] / seconds["ours"],
            "train_memory_vs_naive3": peak["ours"] / peak["obvious_3"],
        }
    return {"n_exponent": part["n_exponent"]}


def table(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = [""]
    for run in result.get("rank", {}).get("runs", []):
        lines.append(f"ranking {run['batch']} rows, {run['tokens']} tokens, the longest candidate has {run['longest']}")
        for name, own in run["systems"].items():
            lines.append(
                f"  {name:14} {own['seconds']:8.2f} s ± {own['spread']:4.0%}  {own['rows_per_s']:7.2f} rows/s  "
                f"{own['peak_share']:4.0%} of the peak"
            )
        peaks = ", ".join(f"{dtype} {a:.0f} → {b:.0f}" for dtype, (a, b) in run["peak_gflops"].items())
        lines.append(f"  peak of a product, before → after, GFLOP/s: {peaks}")
    for name, seconds in result.get("train", {}).get("seconds", {}).items():
        peak = result["train"]["peak_bytes"][name] / 2**20
        lines.append(f"training step, {name:10} {seconds:8.2f} s  {peak:8.0f} MiB")
    lines += ["", *(f"{name:26} {value:8.3f}" for name, value in result["ratios"].items())]
    lines += [f"{name:26}  missing: {reason}" for name, reason in result["missing"].items()]
    return lines


if __name__ == "__main__":
    run_command(main, BenchmarkConfig)
