"""Measure URG beside the obvious code: `python -m urg.benchmark --output DIR`.

Writes DIR/benchmark.json (`ratios`, `missing` with the reason, and every measurement behind them) and prints a table.
Random weights in a T5's shape: nothing is downloaded, and nothing is said of quality. Run it on a quiet machine: the
peak of a matrix product before and after each part tells whether it was one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError

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

    from urg.benchmarks.experiments import measure

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
