"""Setting up one worker process: threads, seeds, logging."""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from urg.config import TrainConfig


def prepare_process(config: TrainConfig) -> None:
    """Threads and quiet libraries; called once, before anything else in a worker."""
    if not config.engine.use_gpu:
        torch.set_num_threads(config.engine.cpus_per_worker)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(deepspeed|torch|transformers)\b.*")


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """While the block runs, a package that nobody has imported yet is as if it were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def seed_everything(*key: int) -> None:
    """Seed torch, on CPU and GPU, by a key such as (seed, step, worker, micro-batch): no state to save, exact on
    resume."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)
