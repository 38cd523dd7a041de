"""Timing that can be trusted on a machine that is not quite quiet: warm-up, variants in turn, medians and spread.

A neighbour that takes a core breaks a ratio. Variants take turns, so that all of them meet it; the peak of a matrix
product is measured before and after, so that a disturbed run can be told from a calm one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from urg.frozen_encoder import FrozenProduct


@dataclass(frozen=True)
class Timing:
    """Seconds of the repeats of one variant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median repeat."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest − fastest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def in_turn(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, Timing]:
    """Run every variant `warm_up` times, then all of them in turn, `repeats` times."""
    for run in variants.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            seconds[name].append(timed(run, device))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the accelerator's work included."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for the accelerator, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(dtype: torch.dtype, device: torch.device, size: int = 2048, repeats: int = 6) -> float:
    """FLOP/s of the fastest of some square matrix products: what the machine gives at this moment, at best.

    On a CPU, PyTorch's own product and oneDNN's on a weight that is laid out for it; either may be the faster one.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu":
        laid_out = FrozenProduct(b, dtype)
        products.append(lambda: laid_out(a))
    for product in products:
        product()
    return 2 * size**3 / min(timed(product, device) for product in products for _ in range(repeats))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most memory that a call holds beyond what was held before it.

    CUDA: of tensors. CPU: resident memory of the process (Linux), so call it in a process of its own.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = held_bytes(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = held_bytes(device)
    run()
    return _status_bytes("VmHWM") - before


def release() -> None:
    """Give back to the system what the process has freed, where glibc keeps it: a peak is then new memory."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def held_bytes(device: torch.device) -> int:
    """Memory that is held now: of tensors on CUDA, of the process on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status_bytes("VmRSS")


def in_own_process(module: str, function: str, *arguments: object) -> Any:
    """What the last line that a function prints holds as JSON, called in a process of its own; `started` is when that
    began, by `time.time`."""
    given = ", ".join(map(repr, arguments))
    call = f"from {module} import {function}; {function}({given}, started={time.time()!r})"
    done = subprocess.run([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}.")
