"""What a run trains, behind one small protocol: the loop, the sampler, checkpoints and resume know no system by name.

URG is one implementation (`urg_task.py`); the rankers with an encoder (`ranker_task.py`) and GenFuser (`fuser_task.py`)
are the others. A new one: a class, a line in TASKS, a test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.shards import ShardSet, Split, TokenizedExample
from urg.config import TrainConfig


@dataclass(frozen=True)
class Share:
    """The rows that a worker takes at once."""

    examples: Sequence[TokenizedExample]
    """The rows."""
    rows: np.ndarray
    """Their indices in the split, int64 [B]: what random choices are keyed by."""
    step: int
    """The optimizer step, from 1."""
    fillers: int
    """How many of the last rows keep the worker in step with the others and must not change anything: 0 or 1."""


@dataclass(frozen=True)
class Judged:
    """What a system makes of one dev row."""

    scores: NDArray[np.float64] | None
    """[N], one a candidate, higher is better; None where the system does not rank."""
    text: str
    """Its answer: the fused text, or the candidate that it picks."""


class Task(Protocol):
    """What the loop needs of a system. `batch` may be anything that the task understands."""

    module: nn.Module
    """What is trained: fp32 weights that are equal on all workers."""
    weights: Mapping[str, float]
    """The weight of each loss term, by the name that it is logged under."""

    def counts(self, split: Split, rows: np.ndarray) -> Any:
        """What the sums of a global batch of these rows are divided by: known from the data, before any forward. Called
        where `batch` is."""
        ...

    def batch(self, share: Share, device: torch.device) -> Any:
        """The tensors of a share, on `device`. Called in another thread than the rest, one share ahead of it: so it
        draws nothing from torch, and changes nothing that the rest reads."""
        ...

    def terms(self, forward: Callable[..., Any], batch: Any, counts: Any) -> dict[str, Tensor]:
        """This batch's share of each loss term of the *global* batch, unweighted: summed over workers and micro-batches
        they are the global means. forward: the module's forward pass, to be called once."""
        ...

    def tokens(self, batch: Any) -> tuple[int, int]:
        """(real tokens, tokens computed with padding) of a batch."""
        ...

    def diagnose(self, batch: Any, counts: Any) -> dict[str, float]:
        """What is worth logging now and then beside the loss, from a forward pass of its own. Called on rank 0 only."""
        ...

    def judge(self, examples: Sequence[TokenizedExample], device: torch.device) -> list[Judged]:
        """Answer dev rows with the module in eval mode."""
        ...

    def save(self, folder: Path, weights: dict[str, Tensor], step: int) -> None:
        """Write what loads back: fp32 `weights` by parameter name, settings and tokenizer. Called on rank 0 only."""
        ...

    def card(self, step: int, dev: Mapping[str, float]) -> str:
        """The model card, Markdown. dev: metrics of the dev split."""
        ...


TASKS = {
    "urg": "urg.training.urg_task:UrgTask",
    "pair_ranker": "urg.training.ranker_task:RankerTask",
    "simcls": "urg.training.ranker_task:RankerTask",
    "summareranker": "urg.training.ranker_task:RankerTask",
    "gen_fuser": "urg.training.fuser_task:FuserTask",
}


def build_task(config: TrainConfig, shards: ShardSet) -> Task:
    """The task that `config.system` names. Raises UserError where its base model cannot be loaded."""
    module, _, name = TASKS[config.system].partition(":")
    task: Task = getattr(importlib.import_module(module), name)(config, shards)
    return task


def make_ready(module: nn.Module, backbone: Any, config: TrainConfig) -> None:
    """Dropout, activation checkpointing and training mode as configured. backbone: the Hugging Face model in it."""
    set_dropout(module, config.model.dropout)
    if config.engine.activation_checkpointing:
        backbone.activation_checkpointing_enable()
    module.train()


def set_dropout(module: nn.Module, rate: float) -> None:
    """Set the dropout rate of every layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = rate
        for name in ("dropout", "attention_dropout", "activation_dropout"):  # T5Attention and BART keep numbers
            if isinstance(getattr(layer, name, None), (int, float)):
                setattr(layer, name, rate)
