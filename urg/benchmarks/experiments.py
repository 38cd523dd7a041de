"""The experiments of `python -m urg.benchmark`."""

from __future__ import annotations

import functools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from urg.benchmarks.config import EXPERIMENTS, BenchmarkConfig
from urg.benchmarks.faults import measure_faults
from urg.benchmarks.first import measure_first
from urg.benchmarks.fusing import measure_fusing
from urg.benchmarks.growth import measure_growth
from urg.benchmarks.profiles import measure_profiles
from urg.benchmarks.rankers import measure_rankers
from urg.benchmarks.ranking import measure_ranking
from urg.benchmarks.ratios import ratios
from urg.benchmarks.shapes import make_model
from urg.benchmarks.stack import measure_stack
from urg.benchmarks.training import measure_training, training_memory
from urg.code_version import git_commit


def measure(config: BenchmarkConfig, keep: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Every experiment that is asked for, and the ratios that follow. keep: gets what there is after each of them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    commit, machine = git_commit(), _machine(device)  # before there is work of our own
    wanted: tuple[str, ...] = (config.experiment,)
    if config.experiment == "all":  # a first answer has no time for whole trainings that are killed
        wanted = tuple(name for name in EXPERIMENTS if not (config.quick and name in ("profile", "faults")))
    parts: dict[str, Any] = {}
    took: dict[str, float] = {}
    result: dict[str, Any] = {"commit": commit, "machine": machine, "config": asdict(config), "took_seconds": took}
    for number, name in enumerate(wanted, 1):
        print(f"measuring {name} ({number} of {len(wanted)})", flush=True)
        started = time.perf_counter()
        parts[name] = _EXPERIMENTS[name](config, device)
        took[name] = time.perf_counter() - started
        found, missing = ratios(parts)
        result |= {"ratios": found, "missing": missing, **parts}
        keep(result)
    return result


def _machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of. load: runnable processes in the last minute, when the benchmark began."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


def cpu_name() -> str:
    """The processor's name as Linux has it, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _rank(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    make = functools.partial(make_model, config.rank_shape)
    timed = measure_ranking(make, config.batches, config.n, config.repeats, device)
    return {**timed, "first": measure_first(config.rank_shape, config.batches, config.n, torch.get_num_threads())}


def _train(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    make = functools.partial(make_model, config.train_shape)
    timed = measure_training(make, config.train_rows, config.n, config.repeats, device)
    memory = training_memory(config.train_shape, config.train_rows, config.n, torch.get_num_threads())
    return {**timed, "bytes": memory}


def _complexity(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """PairRanker's encoder is that of our model, or a tiny one: all pairs of 48 candidates take a minute on a small."""
    make = functools.partial(make_model, config.train_shape)
    is_tiny = config.quick or config.ranker_shape == "tiny"
    encoder = make_model("tiny").t5.config if is_tiny else None
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


def _profile(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    rank, train = make_model(config.rank_shape), make_model(config.train_shape)
    return measure_profiles(rank, train, config.batches[0], config.train_rows, config.n, device)


def _fuse(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    make = functools.partial(make_model, config.rank_shape)
    return measure_fusing(make, config.batches[0], config.n, config.new_tokens, config.repeats, device)


def _stack(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    with _scratch(config) as work:
        return measure_stack(work, config.stack_steps, min(3, config.repeats), torch.get_num_threads(), device)


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
    "profile": _profile,
    "faults": _faults,
}
