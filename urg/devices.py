"""Bringing what was made on the CPU to the device that computes with it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def moved(value: Value, device: torch.device) -> Value:
    """A tensor on `device`, or a dataclass with all that is in it; what is neither stays as it is.

    To a GPU a tensor goes from pinned memory, so that nothing waits until it is there.
    """
    there: Any = value
    if isinstance(value, Tensor):
        pinned = value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value
        there = pinned.to(device, non_blocking=True)
    elif is_dataclass(value) and not isinstance(value, type):
        there = replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return there  # type: ignore[no-any-return]
