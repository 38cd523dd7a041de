"""Tasks that are another's but for what a test wants to see, or to go wrong, inside the workers of a real run."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.shards import TokenizedExample
from urg.training.task import Judged, Share, Task


class Tampered:
    """All of `task`."""

    def __init__(self, task: Task) -> None:
        self.task, self.step, self.micro = task, 0, 0
        self._made: deque[Share] = deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, share: Share, device: torch.device) -> Any:
        """The task's; made ahead."""
        made = self.task.batch(share, device)
        self._made.append(share)
        return made

    def taken(self) -> Share:
        """What `terms` is asked for; `step` and `micro` then say of which step it is, and which one of it on this
        worker, from 0."""
        share = self._made.popleft()
        self.micro = self.micro + 1 if share.step == self.step else 0
        self.step = share.step
        return share


class NanLoss(Tampered):
    """At these steps one term of the loss is NaN, in the first micro-batch of the second of two workers."""

    def __init__(self, task: Task, steps: Container[int]) -> None:
        super().__init__(task)
        self.steps = steps

    def terms(self, forward: Callable[..., Any], batch: Any, counts: Any) -> dict[str, Tensor]:
        """The task's, one of them spoilt."""
        self.taken()
        terms = self.task.terms(forward, batch, counts)
        if self.step in self.steps and self.micro == 0 and dist.get_rank() == 1:
            terms["ce"] = terms["ce"] * float("nan")
        return terms


class RowsRecorded(Tampered):
    """Each worker writes to `folder` which rows it was given, before it takes them. The first time that the second of
    two workers comes to the step `dies_at`, it gets SIGKILL instead."""

    def __init__(self, task: Task, folder: Path, dies_at: int) -> None:
        super().__init__(task)
        self.folder, self.dies_at = folder, dies_at

    def terms(self, forward: Callable[..., Any], batch: Any, counts: Any) -> dict[str, Tensor]:
        """The task's."""
        share, died = self.taken(), self.folder / "died"
        if share.step == self.dies_at and dist.get_rank() == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        rows = share.rows[: len(share.rows) - share.fillers].tolist()
        with (self.folder / f"rank-{dist.get_rank()}.jsonl").open("a") as file:
            file.write(json.dumps({"process": os.getpid(), "step": share.step, "rows": rows}) + "\n")
        return self.task.terms(forward, batch, counts)


class SlowToJudge(Tampered):
    """A second and a half for a batch of dev rows."""

    def judge(self, examples: Sequence[TokenizedExample], device: torch.device) -> list[Judged]:
        """The task's."""
        time.sleep(1.5)
        return self.task.judge(examples, device)
