"""Measure URG beside the obvious code and the other systems: `python -m urg.benchmark --output DIR`.

Writes DIR/benchmark.json (`ratios`, `missing` with the reason, and every measurement behind them) and benchmark.md
(Tables 4 and 7 of the paper, the published figures in columns of their own), and prints both as text.
Random weights in a T5's shape: nothing is downloaded, and nothing is said of quality. Run it on a quiet machine: the
peak of a matrix product before and after each part tells whether it was one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError

EXPERIMENTS = ("rank", "rankers", "fuse", "train", "stack", "complexity", "faults")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time, how often, and where to put the result."""

    output: str = "runs/benchmark"
    """Folder for benchmark.json."""
    experiment: Literal["all", "rank", "rankers", "fuse", "train", "stack", "complexity", "faults"] = "all"
    """One experiment, or all of them: rank (ours and the obvious code), rankers (Tables 4 and 7), fuse, train, stack
    (`urg.train` and a bare loop), complexity (§3.5), faults (weak scaling, what safety costs, recovery)."""
    rank_shape: str = "t5-base"
    """Shape for ranking (tiny, t5-small, t5-base, t5-large, t5-xl; random weights), or a model folder."""
    train_shape: str = "t5-small"
    """Shape for training, or a model folder."""
    ranker_shape: Literal["tiny", "deberta-v3-base", "deberta-v3-large"] = "deberta-v3-base"
    """Shape of the other rankers' encoder, random weights."""
    new_tokens: int = 64
    """Tokens that fusing writes."""
    stack_steps: int = 160
    """Steps of `urg.train` and of the bare loop."""
    fault_steps: int = 40
    """Steps of each run of `faults`, an even number."""
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
        if min(self.n, self.train_rows, self.repeats, self.new_tokens, *self.batches) < 1 or not self.batches:
            raise UserError("batches, n, train_rows, repeats and new_tokens must be 1 or more.")
        if self.stack_steps < 16:
            raise UserError(f"stack_steps={self.stack_steps}: give 16 or more, for the first ones do not count.")
        if self.fault_steps < 24 or self.fault_steps % 2:
            raise UserError(f"fault_steps={self.fault_steps}: give an even number from 24 on.")
        if self.n <= 4:
            raise UserError(f"n={self.n}: give more than four candidates, for training takes K=3 and a last one.")


def main(config: BenchmarkConfig) -> None:
    """Time ranking, fusing, training and growth, ours beside the obvious code and the other systems."""
    import torch

    from urg.benchmarks.experiments import measure
    from urg.benchmarks.tables import sheets
    from urg.evaluation.sheet import markdown, plain

    if config.quick:
        config = _quick(config)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    output = Path(config.output).expanduser().absolute()
    result = measure(config)
    output.mkdir(parents=True, exist_ok=True)
    (output / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found = sheets(result)
    (output / "benchmark.md").write_text("\n".join(map(markdown, found)), encoding="utf-8")
    print("\n\n".join(map(plain, found)))
    print(f"results: {output / 'benchmark.json'}, benchmark.md")


def _quick(config: BenchmarkConfig) -> BenchmarkConfig:
    import dataclasses

    return dataclasses.replace(
        config,
        rank_shape="t5-small",
        train_shape="t5-small",
        ranker_shape="tiny",
        batches=(4,),
        train_rows=2,
        repeats=3,
        new_tokens=16,
        stack_steps=48,
        fault_steps=24,
    )


if __name__ == "__main__":
    run_command(main, BenchmarkConfig)
