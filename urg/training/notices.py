"""Notice that a run must stop, or that its node will be taken away: heard by one worker, agreed upon by all.

Three ways to be told: SIGTERM to the driver, SIGTERM to a worker, and a node that Ray drains (a spot instance before it
is reclaimed). Whoever hears it, all workers act after the same step, and write a checkpoint together.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from urg.training.state import Stopped

UNTIL_STOPPED = "until-stopped"
"""File in the run folder while a driver trains; without it the workers write a checkpoint and stop. To delete a file
works on a full disk too."""
LISTENING = "listening"
"""File in the run folder once rank 0 listens: before, nobody is there who would write a checkpoint."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at that file."""
ASK_RAY_EVERY_S = 1.0
"""Seconds between two questions to Ray whether a node is being drained: of half a minute's notice each one counts."""
ASKERS_A_SECOND = 100
"""With more workers it is asked more seldom: each of them calls the same actor, and all wait for its answer."""

_told = threading.Event()


class Notice(IntEnum):
    """What the workers do after a step."""

    GO_ON = 0
    CHECKPOINT = 1
    """Write a checkpoint and go on: a node will be taken away, and Ray then starts the workers anew elsewhere."""
    STOP = 2
    """Write a checkpoint and end."""


class Notices:
    """A worker's ear. What each one has heard is reduced over all workers while the next step computes, on the CPU: no
    step waits for it, and all workers read the same answer after the same step."""

    def __init__(self, run: Path, rank: int, timeout_s: int) -> None:
        self._until_stopped, self._leads = run / UNTIL_STOPPED, rank == 0
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._look = _Every(LOOK_EVERY_S)
        self._ask = _Every(max(ASK_RAY_EVERY_S, dist.get_world_size() / ASKERS_A_SECOND))
        self._drained: set[str] = set()
        if self._leads:
            with suppress(OSError):  # a full disk, say, which the next checkpoint meets
                (run / LISTENING).touch()
        self._send()

    def listen(self) -> Notice:
        """What was heard before this step, or batch of dev rows, began. Collective."""
        self._reduced.wait()
        stop, ask = self._heard.tolist()
        drained = bool(ask) and self._is_draining()
        self._send()
        return Notice.STOP if stop else Notice.CHECKPOINT if drained else Notice.GO_ON

    def _send(self) -> None:
        """Start the reduction of what this worker has heard: [to stop, to ask Ray]."""
        if self._leads and self._look.is_due() and is_gone(self._until_stopped):
            _told.set()
        self._heard = torch.tensor([_told.is_set(), self._leads and self._ask.is_due()], dtype=torch.int32)
        self._reduced: Any = dist.all_reduce(self._heard, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _is_draining(self) -> bool:
        """Whether Ray has announced the end of a node that it had not announced before. Collective."""
        import ray.train

        info = ray.train.get_preemption_info()
        news = set(info.preempted_node_ids if info else ()) - self._drained
        self._drained |= news
        return bool(news)


def is_gone(file: Path) -> bool:
    """Whether a file has been deleted. Opened, as a network file system may know better than what it has cached."""
    try:
        file.open("rb").close()
    except FileNotFoundError:
        return True
    except OSError:  # the storage does not answer well, which is no order to stop
        return False
    return False


class _Every:
    """A clock for what is not to be done at every step."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether the seconds have passed since the last time that it was due."""
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True


def heed_sigterm() -> None:
    """From now on SIGTERM tells this worker to stop after a step, instead of ending it. In its main thread only."""
    _told.clear()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: _told.set())


@contextmanager
def sigterm_stops(run: Path) -> Iterator[None]:
    """While the block runs, SIGTERM to this process, the driver, tells the workers of `run` to write a checkpoint and
    stop; a second one ends the process at once. Where no worker listens yet, as while a run waits for nodes, there is
    nothing to save: Stopped is raised at once.

    At the block's end SIGTERM does what it did before, and so does SIGINT, which Ray's trainer takes and keeps. Outside
    a main thread, as in a sweep, signals are left alone.
    """
    (run / LISTENING).unlink(missing_ok=True)
    (run / UNTIL_STOPPED).touch()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
    idle = threading.Event()

    def tell(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])
        if is_gone(run / LISTENING):
            idle.set()
            raise KeyboardInterrupt  # the one exception that ends Ray's waiting
        os.write(2, b"SIGTERM: the workers write a checkpoint and stop; a second SIGTERM ends all at once.\n")
        (run / UNTIL_STOPPED).unlink(missing_ok=True)

    signal.signal(signal.SIGTERM, tell)
    try:
        yield
    except KeyboardInterrupt:
        if not idle.is_set():
            raise
        raise Stopped(f"stopped: run {run.name} had no worker yet; the same command goes on.") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
