"""The thread that moves events from a journal to a server that may be slow, away, or come back later."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from data_pipeline.errors import UserError
from urg.tracking.journal import Event, Journal

INTERVAL = 1.0
"""Seconds between two looks into the journal."""
RETRY_LIMIT = 30.0
"""Seconds between two attempts while the server is away, at most."""
EVENTS_PER_SEND = 1000
_log = logging.getLogger(__name__)


class Destination(Protocol):
    """Where the events go. Called by one thread; `connect` and `send` may raise anything, and are called again then."""

    @property
    def name(self) -> str:
        """For messages; holds no secret."""
        ...

    def connect(self) -> None:
        """Reach the server; cheap when that has been done."""
        ...

    def send(self, events: Sequence[Event]) -> None:
        """Deliver the events, of which any may be there already from an attempt that failed half-way."""
        ...

    def explain(self, error: Exception) -> str:
        """The error as one line without secrets."""
        ...

    def is_hopeless(self, error: Exception) -> bool:
        """Whether waiting does not mend an error of the first `connect`: a wrong address or login."""
        ...

    def retry_failed(self) -> None:
        """Try again what `send` took but could not store (artifacts)."""
        ...

    def failed(self) -> Sequence[Event]:
        """What is still not stored."""
        ...


def drain(journal: Journal, destination: Destination) -> None:
    """Send all that is in the journal. An event leaves it when the destination has taken it."""
    while journal.pending:
        events, position = journal.read(EVENTS_PER_SEND)
        destination.send(events)
        journal.advance(position)


class Sender:
    """Starts the thread and waits up to `connect_timeout` seconds for its first attempt.

    Raises UserError where that attempt shows that there is no hope; any other failure is retried for ever, with one
    warning. trusted: it has worked before, so that nothing is hopeless and there is nothing to wait for: a training
    that goes on is neither ended nor held up.
    """

    def __init__(
        self, journal: Journal, destination: Destination, connect_timeout: float, trusted: bool = False
    ) -> None:
        self._journal, self._destination = journal, destination
        self._trusted = trusted
        self._wake, self._closing, self._tried = threading.Event(), threading.Event(), threading.Event()
        self._moved = threading.Condition()
        self._deadline = float("inf")
        self._fatal: UserError | None = None
        self._away = self._full = False
        self._thread = threading.Thread(target=self._work, name="tracking-sender", daemon=True)
        self._thread.start()
        if not trusted:
            self._tried.wait(connect_timeout)
        if self._fatal:
            raise self._fatal

    def add(self, events: Sequence[Event]) -> None:
        """Put events into the journal. Never raises: a full disk must not end the training."""
        try:
            self._journal.append(events)
        except OSError as error:
            if not self._full:
                path, why = self._journal.path, error.strerror
                _log.warning("%s cannot be written (%s): what is logged is lost until it can.", path, why)
            self._full = True

    def flush(self, timeout: float) -> bool:
        """Wait until the journal is empty; False after `timeout` seconds."""
        self._wake.set()
        with self._moved:
            return self._moved.wait_for(lambda: not self._journal.pending, timeout)

    def close(self, timeout: float) -> bool:
        """Send the rest, for at most `timeout` seconds, and end the thread; False where something stays."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._journal.pending

    def _work(self) -> None:
        delay, closing = 0.0, False
        while not self._fatal:
            self._wake.wait(delay)
            self._wake.clear()
            closing = self._closing.is_set()
            done = self._attempt(closing)
            if closing and (done or time.monotonic() + INTERVAL > self._deadline):
                break
            delay = INTERVAL if done or closing else min(max(INTERVAL, 2 * delay), RETRY_LIMIT)
        if failed := self._destination.failed():
            self.add(failed)
        self._journal.close()

    def _attempt(self, closing: bool) -> bool:
        """Send what there is; False where that failed. No error of server, network or disk may end the process."""
        try:
            self._destination.connect()
            drain(self._journal, self._destination)
            if closing:
                self._destination.retry_failed()
        except Exception as error:
            self._report(error)
            return False
        finally:
            self._tried.set()
            with self._moved:
                self._moved.notify_all()
        if self._away:
            _log.warning("%s is back: what was kept has been sent.", self._destination.name)
        self._away = False
        return True

    def _report(self, error: Exception) -> None:
        name, why, path = self._destination.name, self._destination.explain(error), self._journal.path
        if not (self._tried.is_set() or self._trusted) and self._destination.is_hopeless(error):
            self._fatal = UserError(f"{name} cannot be used ({why}): check the tracking uri, or turn tracking off.")
        elif not self._away:
            _log.warning("%s does not answer (%s): what is logged is kept in %s until it does.", name, why, path)
        self._away = True
