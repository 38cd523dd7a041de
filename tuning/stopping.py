"""SIGTERM to a sweep: each trial that trains writes a checkpoint and ends; the same command goes on with them. One that
waits, for nodes perhaps, has nothing to save: it ends before it trains, or is interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from urg.training.notices import LISTENING, UNTIL_STOPPED, is_gone

PATIENCE_S = 840.0
"""Seconds that trials have for their checkpoints; `ray job stop` as `cluster.submit` asks for it waits 900."""
INTERVAL_S = 1.0
"""Seconds between two looks at which trials are left: one that is about to train makes its file only then. Also what
those that have not begun have to end by themselves."""


@contextmanager
def sigterm_stops_trials(stop: Callable[[], list[Path]], until: Path) -> Iterator[None]:
    """While the block runs, SIGTERM to this process deletes `until` and calls `stop`, which begins nothing more and
    names the run folders that are left, until the block has ended. It is interrupted, as Tune is by Ctrl-C, once none
    of these runs has begun to train, or after PATIENCE_S. A second SIGTERM ends the process at once. Outside a main
    thread signals are left alone.

    until: a file that is there while the block runs, by which a trial knows that it may train; of a name that no
    earlier session had, for a network file system remembers what was not there.
    """
    until.parent.mkdir(parents=True, exist_ok=True)
    until.touch()
    try:
        with _heeding(stop, until):
            yield
    finally:
        until.unlink(missing_ok=True)


@contextmanager
def _heeding(stop: Callable[[], list[Path]], until: Path) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    ended, interrupted = threading.Event(), threading.Event()

    def tell(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        os.write(
            2, b"SIGTERM: the trials that train write a checkpoint, and all stop; a second SIGTERM ends all at once.\n"
        )
        threading.Thread(target=_stop, args=(stop, until, ended, interrupted), name="stop", daemon=True).start()

    signal.signal(signal.SIGTERM, tell)
    try:
        yield
    except KeyboardInterrupt:
        if not interrupted.is_set():
            raise
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


def _stop(stop: Callable[[], list[Path]], until: Path, ended: threading.Event, interrupted: threading.Event) -> None:
    """What happens after the signal, in a thread."""
    deadline = time.monotonic() + PATIENCE_S
    until.unlink(missing_ok=True)
    _tell(stop())
    while not ended.wait(INTERVAL_S):
        runs = stop()  # none: a run may be about to begin, or Tune about to end
        _tell(runs)
        idle = bool(runs) and all(is_gone(run / LISTENING) for run in runs)
        if idle or time.monotonic() > deadline:
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)  # which Tune takes as the end
            return


def _tell(runs: list[Path]) -> None:
    for run in runs:
        (run / UNTIL_STOPPED).unlink(missing_ok=True)
