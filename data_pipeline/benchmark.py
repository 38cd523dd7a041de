"""Measure `prepare` at MixInstruct's size: `python -m data_pipeline.benchmark --output DIR` (`make bench-data`).

Writes DIR/benchmark.json and prints a table:
    rows/s, and peak memory of all processes beyond what Ray takes by itself
    the time beside `datasets.map` doing the same, and beside the Rust tokenizer's own ceiling
    growth from a thousand rows to all, and from one worker to two
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from data_pipeline.paths import absolute


@dataclass(frozen=True)
class BenchmarkConfig:
    """How much to prepare, and where to work."""

    output: str = "runs/benchmark-data"
    """Folder for the result; some GB are written there while it runs, and removed."""
    rows: int = 110_000
    """Rows of the largest run, twelve candidates each."""
    sizes: tuple[int, ...] = (1_000, 4_000, 16_000, 48_000)
    """Rows of the smaller runs, which show the growth."""
    peer_rows: int = 110_000
    """Rows on which `datasets.map` and one worker are compared with `prepare`."""
    repeats: int = 3
    """How often each comparison is repeated, in turn; medians are reported."""
    tokenizer: str | None = None
    """Folder of a tokenizer; null trains one of 8,192 pieces on rows of the benchmark."""
    workers: int = 2
    """CPU slots of Ray, and processes of `datasets.map`."""
    seed: int = 0
    """Seeds the text."""

    def __post_init__(self) -> None:
        if min(self.rows, self.peer_rows, self.repeats, self.workers, *self.sizes) < 1:
            raise UserError("rows, sizes, peer_rows, repeats and workers must be 1 or more.")


def main(config: BenchmarkConfig) -> None:
    """Measure preparing shards: speed, memory, growth, and the same beside other ways to do it."""
    output = absolute(config.output)
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    try:
        result = _measure(config, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    (output / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(result)))
    print(f"results: {output / 'benchmark.json'}")


def _measure(config: BenchmarkConfig, work: Path) -> dict[str, Any]:
    """Every figure of the result."""
    tokenizer, tokens_per_word = _tokenizer(config, work)
    idle = _peer("idle", work, tokenizer, config.workers).peak_bytes
    growth = [_prepare(config, work, tokenizer, tokens_per_word, rows, config.workers) for rows in _all_sizes(config)]
    peers = _compare(config, work, tokenizer, tokens_per_word)
    start, a_row = _line([(run["rows"], run["seconds"]) for run in growth])
    largest = growth[-1]
    return {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "config": asdict(config),
        "idle_gib": idle / 2**30,
        "growth": growth,
        "start_seconds": start,
        "seconds_a_row": a_row,
        "worst_departure_from_the_line": max(abs(r["seconds"] / (start + a_row * r["rows"]) - 1) for r in growth),
        "rows_per_s": largest["rows"] / largest["seconds"],
        "peak_gib_beyond_idle": (largest["peak_gib"] * 2**30 - idle) / 2**30,
        **peers,
    }


def _all_sizes(config: BenchmarkConfig) -> list[int]:
    return [*sorted(size for size in config.sizes if size < config.rows), config.rows]


def _tokenizer(config: BenchmarkConfig, work: Path) -> tuple[str, float]:
    """(folder, tokens a word of the benchmark's text)."""
    from data_pipeline.benchmarks.corpus import write_corpus
    from data_pipeline.encoding import Encoder
    from data_pipeline.tokenization import load_tokenizer
    from data_pipeline.train_tokenizer import row_texts, save_tokenizer, train_tokenizer

    sample = work / "tokenizer-sample.jsonl"
    write_corpus(sample, 1000, config.seed + 1)
    folder = config.tokenizer or str(work / "tokenizer")
    texts = list(row_texts(sample.read_bytes().splitlines()))
    if config.tokenizer is None:
        save_tokenizer(train_tokenizer(texts, 8192), Path(folder))
    tokens = len(Encoder.of(load_tokenizer(folder)).encode(texts, 100_000).ids)
    return folder, tokens / sum(len(text.split()) for text in texts)


def _prepare(
    config: BenchmarkConfig, work: Path, tokenizer: str, tokens_per_word: float, rows: int, workers: int
) -> dict[str, Any]:
    """Time and memory of `python -m data_pipeline.prepare` on `rows` rows, start of Ray included."""
    from data_pipeline.benchmarks.memory import run_watched

    path, root = _corpus(config, work, rows, tokens_per_word), work / "prepared"
    command = [sys.executable, "-m", "data_pipeline.prepare", "--input", str(path), "--output", str(root)]
    run = run_watched([*command, "--tokenizer", tokenizer], _slots(workers))
    manifest = json.loads((root / (root / "CURRENT").read_text().strip() / "manifest.json").read_text())
    responses = [split["tokens"]["response"]["mean"] for split in manifest["splits"].values()]
    shutil.rmtree(root)
    print(f"prepared {rows} rows with {workers} workers in {run.seconds:.1f} s", flush=True)
    return {
        "rows": rows,
        "workers": workers,
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
        "peak_gib": run.peak_bytes / 2**30,
        "mean_response_tokens": sum(responses) / len(responses),
    }


def _corpus(config: BenchmarkConfig, work: Path, rows: int, tokens_per_word: float) -> Path:
    from data_pipeline.benchmarks.corpus import write_corpus

    path = work / f"rows-{rows}.jsonl"
    if not path.exists():
        write_corpus(path, rows, config.seed, tokens_per_word)
    return path


def _slots(workers: int) -> dict[str, str]:
    """The environment under which a local Ray has so many CPU slots."""
    return {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": workers}), "RAY_ADDRESS": "local"}


def _peer(what: str, work: Path, tokenizer: str, processes: int, path: Path | None = None) -> Any:
    from data_pipeline.benchmarks.memory import run_watched

    arguments = f"{what!r}, {str(path or work)!r}, {tokenizer!r}, {processes}"
    call = f"from data_pipeline.benchmarks.peers import print_peer; print_peer({arguments})"
    return run_watched([sys.executable, "-c", call], _slots(processes))


def _compare(config: BenchmarkConfig, work: Path, tokenizer: str, tokens_per_word: float) -> dict[str, Any]:
    """`prepare` with all workers and with one, `datasets.map` and the ceiling, in turn; medians, and their ratios."""
    rows = config.peer_rows
    path = _corpus(config, work, rows, tokens_per_word)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(config.repeats):
        for name, workers in (("prepare", config.workers), ("prepare_1", 1)):
            run = _prepare(config, work, tokenizer, tokens_per_word, rows, workers)
            found[name].append(run["seconds"])
            found[f"{name}_cpu"].append(run["cpu_seconds"])
        for name in ("map", "map_ours"):
            mapped = _peer(name, work, tokenizer, config.workers, path)
            found[name].append(mapped.seconds)
            found[f"{name}_cpu"].append(mapped.cpu_seconds)
            found[f"{name}_without_start"].append(float(mapped.output.split()[-1]))
            print(f"{name}: {rows} rows in {mapped.seconds:.1f} s", flush=True)
        found["ceiling_rows_per_s"].append(float(_peer("ceiling", work, tokenizer, 1, path).output.split()[-1]))
    median = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
    return {
        "peer_rows": rows,
        "peers": found,
        "ratio_to_datasets_map": median["map"] / median["prepare"],
        "ratio_to_datasets_map_with_our_encoder": median["map_ours"] / median["prepare"],
        "cpu_ratio_to_datasets_map": median["map_cpu"] / median["prepare_cpu"],
        "cpu_ratio_to_datasets_map_with_our_encoder": median["map_ours_cpu"] / median["prepare_cpu"],
        "datasets_map_without_start_s": median["map_without_start"],
        "ratio_of_one_worker_to_all": median["prepare_1"] / median["prepare"],
        "tokenizer_ceiling_rows_per_s": config.workers * median["ceiling_rows_per_s"],
    }


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(start, slope) of the least-squares line through (rows, seconds), each point weighing by its relative error."""
    import numpy as np

    rows, seconds = np.array(points, dtype=float).T
    slope, start = np.polyfit(rows, seconds, 1, w=1 / seconds) if len(rows) > 1 else (seconds[0] / rows[0], 0.0)
    return float(start), float(slope)


def table(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = ["", f"{'rows':>8} {'workers':>8} {'seconds':>9} {'rows/s':>8} {'CPU s':>8} {'peak GiB':>9}"]
    for run in result["growth"]:
        lines.append(
            f"{run['rows']:>8} {run['workers']:>8} {run['seconds']:>9.1f} {run['rows'] / run['seconds']:>8.0f} "
            f"{run['cpu_seconds']:>8.1f} {run['peak_gib']:>9.2f}"
        )
    asymptotic = 1 / result["seconds_a_row"]
    lines += [
        "",
        f"seconds = {result['start_seconds']:.1f} + rows / {asymptotic:.0f}; "
        f"no run departs from that by more than {result['worst_departure_from_the_line']:.0%}",
        f"peak beyond an idle Ray ({result['idle_gib']:.2f} GiB): {result['peak_gib_beyond_idle']:.2f} GiB",
        f"datasets.map / prepare, whole commands, {result['peer_rows']} rows: {result['ratio_to_datasets_map']:.2f} "
        f"(our encoder in both: {result['ratio_to_datasets_map_with_our_encoder']:.2f}), "
        f"starts left out: {asymptotic * result['datasets_map_without_start_s'] / result['peer_rows']:.2f}",
        f"the same in processor time, whole commands: {result['cpu_ratio_to_datasets_map']:.2f} "
        f"(our encoder in both: {result['cpu_ratio_to_datasets_map_with_our_encoder']:.2f})",
        f"share of the Rust tokenizer's ceiling ({result['tokenizer_ceiling_rows_per_s']:.0f} rows/s), whole command: "
        f"{result['rows_per_s'] / result['tokenizer_ceiling_rows_per_s']:.2f}, "
        f"start left out: {asymptotic / result['tokenizer_ceiling_rows_per_s']:.2f}",
        f"one worker / all workers: {result['ratio_of_one_worker_to_all']:.2f}",
    ]
    return lines


if __name__ == "__main__":
    run_command(main, BenchmarkConfig)
