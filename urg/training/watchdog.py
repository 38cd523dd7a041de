"""Ending a worker in which nothing moves any more.

A collective whose other side hangs, or is cut off, never returns, and no exception reaches the thread that waits in it;
DeepSpeed's process groups have timeouts of their own, which are longer. So another thread ends the process, and Ray
starts all workers anew from the last checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDERR = 2
PATIENCE_S = 5.0
"""Seconds that telling may take: the storage may be what hangs."""


class Watchdog:
    """Ends the process `timeout_s` seconds after the last `moved`. tell: called with the reason before that."""

    def __init__(self, timeout_s: float, tell: Callable[[str], None]) -> None:
        self._timeout_s, self._tell, self._last = timeout_s, tell, time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def moved(self) -> None:
        """Something has come to its end: a step, a batch of the dev split, a part of a checkpoint."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            if time.monotonic() - self._last > self._timeout_s:
                faulthandler.dump_traceback(STDERR)
                reason = f"nothing has moved for {self._timeout_s:g} s (engine.timeout_s)"
                teller = threading.Thread(target=self._tell, args=(reason,), daemon=True)
                teller.start()
                teller.join(PATIENCE_S)
                os._exit(1)


@contextmanager
def watching(timeout_s: float, tell: Callable[[str], None]) -> Iterator[Watchdog]:
    """A watchdog for the duration of the block."""
    watchdog = Watchdog(timeout_s, tell)
    try:
        yield watchdog
    finally:
        watchdog.close()
