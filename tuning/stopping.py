"""SIGTERM to a sweep: each trial under way writes a checkpoint and ends; the same command goes on with them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from urg.training.notices import UNTIL_STOPPED

PATIENCE_S = 840.0
"""Seconds that trials have for their checkpoints; `ray job stop` as `cluster.submit` asks for it waits 900."""
INTERVAL_S = 1.0
"""Seconds between two looks at which trials are left: one that is about to train makes its file only then."""


@contextmanager
def sigterm_stops_trials(stop: Callable[[], list[Path]]) -> Iterator[None]:
    """While the block runs, SIGTERM to this process calls `stop`, which begins nothing more and names the run folders
    that are left, until none is; after PATIENCE_S Tune is interrupted. A second SIGTERM ends the process at once.
    Outside a main thread signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    ended = threading.Event()

    def tell(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        os.write(2, b"SIGTERM: the trials write a checkpoint and stop; a second SIGTERM ends all at once.\n")
        threading.Thread(target=_stop, args=(stop, ended), name="stop", daemon=True).start()

    signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


def _stop(stop: Callable[[], list[Path]], ended: threading.Event) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while runs := stop():
        for run in runs:
            (run / UNTIL_STOPPED).unlink(missing_ok=True)
        if ended.wait(INTERVAL_S):
            return
        if time.monotonic() > deadline:
            os.kill(os.getpid(), signal.SIGINT)  # which Tune takes as the end
            return
