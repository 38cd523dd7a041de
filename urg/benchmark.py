"""Measure URG beside the obvious code and the other systems: `python -m urg.benchmark --output DIR`.

Writes DIR/benchmark.json (`ratios`, `missing` with the reason, and every measurement behind them) and benchmark.md
(Tables 4 and 7 of the paper, the published figures in columns of their own), and prints both as text.
Random weights in a T5's shape: nothing is downloaded, and nothing is said of quality. Run it on a quiet machine: the
peak of a matrix product before and after each part tells whether it was one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from urg.benchmarks.config import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    """Time ranking, fusing, training and growth, ours beside the obvious code and the other systems."""
    import torch

    from urg.benchmarks.experiments import measure
    from urg.benchmarks.tables import sheets
    from urg.evaluation.sheet import markdown, plain

    if config.quick:
        config = quick(config)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    output = Path(config.output).expanduser().absolute()
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmark.json").touch()
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): name another folder.") from error

    def keep(result: dict[str, Any]) -> None:
        (output / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    result = measure(config, keep)
    found = sheets(result)
    (output / "benchmark.md").write_text("\n".join(map(markdown, found)), encoding="utf-8")
    print("\n\n".join(map(plain, found)))
    print(f"results: {output / 'benchmark.json'}, benchmark.md")


QUICK: dict[str, Any] = {
    "rank_shape": "t5-small",
    "train_shape": "t5-small",
    "ranker_shape": "t5-small",
    "batches": (2,),
    "train_rows": 2,
    "repeats": 1,
    "new_tokens": 16,
    "stack_steps": 16,
}
"""What `--quick` makes small."""


def quick(config: BenchmarkConfig) -> BenchmarkConfig:
    """The small settings, where none were given: what differs from its default stays."""
    free = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) == f.default}
    return dataclasses.replace(config, **{name: value for name, value in QUICK.items() if name in free})


if __name__ == "__main__":
    run_command(main, BenchmarkConfig)
