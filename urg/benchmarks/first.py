"""The first ranking and the memory that ranking takes: each variant in a process of its own, from its start."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from urg.benchmarks.clock import held_bytes, in_own_process, peak_bytes, release
from urg.benchmarks.ranking import DTYPES, ranker
from urg.benchmarks.shapes import make_model
from urg.benchmarks.workload import draw_rows

VARIANTS = ("ours_fp32", "ours_bf16", "obvious_fp32")


def measure_first(shape: str, batches: tuple[int, ...], n: int, threads: int) -> dict[str, dict[str, Any]]:
    """Of each variant:

    import_seconds, model_seconds, first_seconds: from the start of a process until all is imported, from there until
    the model is made, and from there until it is ready and has ranked one row
    model_bytes, held_bytes: what is held when the model is made, and when it has ranked that row
    peak_bytes: by rows, the most that ranking so many holds beyond that; the obvious code's for the first size alone
    """
    return {
        name: in_own_process(
            __name__, "print_first", name, shape, batches if name.startswith("ours") else batches[:1], n, threads
        )
        for name in VARIANTS
    }


def print_first(name: str, shape: str, batches: tuple[int, ...], n: int, threads: int, started: float) -> None:
    """Print the figures of a variant; for a process that does nothing else. started: when it was, by `time.time`."""
    imported = time.time()
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, dtype = name.split("_")
    model = make_model(shape).to(device, DTYPES[dtype])
    made, model_bytes = time.time(), held_bytes(device)
    rank, vocab_size = ranker(kind, model), int(model.t5.config.vocab_size)
    del model  # the obvious code has its own
    rank(draw_rows(1, n, vocab_size), device).cpu()
    ranked = time.time()
    release()
    held, peaks = held_bytes(device), {}
    for size in sorted(batches):
        rows = draw_rows(size, n, vocab_size, seed=size)
        peaks[size] = peak_bytes(lambda rows=rows: rank(rows, device), device)  # type: ignore[misc]
        release()
    seconds = {"import_seconds": imported - started, "model_seconds": made - imported, "first_seconds": ranked - made}
    print(json.dumps(seconds | {"model_bytes": model_bytes, "held_bytes": held, "peak_bytes": peaks}))
