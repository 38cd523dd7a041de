"""All that a batch holds goes to a device the same way, whatever system it is of."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from urg.batching import Batch
from urg.devices import moved
from urg.layout import Layout
from urg.systems.encoder import Sequences
from urg.systems.pair_ranker import Pairs
from urg.systems.simcls import Margins
from urg.systems.summareranker import Verdicts
from urg.training.fuser_task import FuserBatch
from urg.training.urg_task import Guided

IDS = torch.arange(5)
SEQUENCES = Sequences(IDS, (2, 3), torch.zeros(2, 1, dtype=torch.int64))
BATCH = Batch(IDS, Layout.of([[2, 3]]), *torch.ones(4, 1, 2).unbind())
BATCHES = {
    "urg": Guided(BATCH, torch.ones(1, 2)),
    "urg, by prediction": Guided(BATCH, None),
    "pair_ranker": Pairs(SEQUENCES, *torch.ones(2, 2, 1).unbind()),
    "simcls": Margins(SEQUENCES, *torch.ones(6, 4).unbind()),
    "summareranker": Verdicts(SEQUENCES, *torch.ones(4, 2).unbind()),
    "gen_fuser": FuserBatch(*torch.ones(4, 1, 2).unbind(), real=3),
}


def values(batch: Any) -> list[Any]:
    """What a dataclass holds, and what the dataclasses in it hold."""
    found = []
    for field in fields(batch):
        value = getattr(batch, field.name)
        found += values(value) if is_dataclass(value) else [value]
    return found


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_every_tensor_is_there_and_all_else_as_it_was(batch: Any) -> None:
    there = moved(batch, torch.device("meta"))
    assert type(there) is type(batch)
    for before, after in zip(values(batch), values(there), strict=True):
        if isinstance(before, Tensor):
            assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
        else:
            assert after is before


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_to_a_gpu_every_tensor_goes_from_pinned_memory_and_nothing_waits(
    batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, str]] = []

    def pin_memory(self: Tensor) -> Tensor:
        done.append((id(self), "pinned"))
        return self

    def to(self: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        done.append((id(self), f"{device.type}, non_blocking={non_blocking}"))
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    moved(batch, torch.device("cuda"))
    tensors = [id(value) for value in values(batch) if isinstance(value, Tensor)]
    assert done == [(own, step) for own in tensors for step in ("pinned", "cuda, non_blocking=True")]


def test_what_is_there_already_is_not_copied() -> None:
    assert moved(IDS, torch.device("cpu")) is IDS
    assert moved("a text", torch.device("cpu")) == "a text"
