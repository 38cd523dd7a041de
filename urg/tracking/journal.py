"""A queue of events on disk: what is logged while its server is away, or before its process is killed, is not lost.

A spool folder holds, for every run, `<key>.json` (its RunCard: which run) and, for every process that logs to it,
`<key>-<8 hex>.jsonl` (its events that are not yet on the server, one JSON object a line). A process holds a lock on its
own file; a file without a lock was left behind, and whoever opens the run next takes it over.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from data_pipeline.errors import UserError

Event = Mapping[str, Any]
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class RunCard:
    """Which run a spool belongs to: enough to find it on the server, or to make it there later."""

    key: str
    """Made by us before the server knows the run; the run's tag `urg.run_key`."""
    experiment: str
    run_name: str
    start_time: float
    """Seconds since the epoch."""
    run_id: str | None = None
    """The server's id; None until the server has been reached."""

    def write(self, spool: Path) -> None:
        """Write `<key>.json`, whole or not at all. Raises UserError where the folder cannot be written."""
        path = spool / f"{self.key}.json"
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
        try:
            spool.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self)) + "\n")
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(spool, error) from None


def read_cards(spool: Path) -> list[RunCard]:
    """The cards of a spool folder, the newest run last; files that are no card are passed over."""
    cards = []
    for path in spool.glob("*.json"):
        try:
            cards.append(RunCard(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(cards, key=lambda card: card.start_time)


def find_card(spool: Path, run_id: str | None, experiment: str, run_name: str) -> RunCard:
    """The card of the run `run_id` (a server's id, or `pending-<key>`), as the spool has it or new. None: a new run."""
    new = RunCard(key=uuid.uuid4().hex, experiment=experiment, run_name=run_name, start_time=time.time())
    if run_id is None:
        return new
    for card in read_cards(spool):
        if run_id in (card.run_id, f"pending-{card.key}"):
            return card
    if run_id.startswith("pending-"):
        return replace(new, key=run_id.removeprefix("pending-"))
    return replace(new, key=run_id, run_id=run_id)


def _unwritable(spool: Path, error: OSError) -> UserError:
    return UserError(f"The tracking spool {spool} cannot be written ({error.strerror}): choose another folder.")


def _lock(file: IO[bytes]) -> bool:
    """Take the file's lock; False where another process has it, or the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_held(spool: Path) -> bool:
    """Whether a process that lives logs to the spool; also true of files left on a file system that has no locks."""
    for path in spool.glob("*.jsonl"):
        try:
            with path.open("rb") as file:
                if not _lock(file):
                    return True
        except FileNotFoundError:
            continue
    return False


class Journal:
    """An append-only file of events, read back in order and emptied when all of them have been sent. Thread-safe.

    An event is in the file (in the operating system's cache, that is: a killed process loses nothing, a power cut may)
    when `append` returns. Opening takes over the files that earlier processes left of the same key.
    Raises UserError where the folder cannot be written.
    """

    def __init__(self, spool: Path, key: str) -> None:
        self.path = spool / f"{key}-{uuid.uuid4().hex[:8]}.jsonl"
        self._mutex = threading.Lock()
        self._sent = self._end = 0
        temporary = self.path.with_suffix(".part")
        try:
            spool.mkdir(parents=True, exist_ok=True)
            self._file = temporary.open("a+b", buffering=0)
        except OSError as error:
            raise _unwritable(spool, error) from None
        _lock(self._file)
        os.replace(temporary, self.path)  # named only when locked, so that nobody takes it for one left behind
        self._take_over(sorted(spool.glob(f"{key}-*.jsonl")))

    @property
    def pending(self) -> bool:
        """Whether events are left that have not been sent."""
        return self._end > self._sent

    def append(self, events: Sequence[Event]) -> None:
        """Write the events behind the others. Raises OSError where the disk is full; the file stays readable."""
        self._write(b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def read(self, limit: int) -> tuple[list[Event], int]:
        """The next events that have not been sent, at most `limit`, and the position to `advance` to when they are."""
        with self._mutex:
            data = os.pread(self._file.fileno(), min(self._end - self._sent, READ_BYTES), self._sent)
            position = self._sent
        events: list[Event] = []
        for line in data.splitlines(keepends=True)[:limit]:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            if (event := _parse(line)) is not None:
                events.append(event)
        return events, position

    def advance(self, position: int) -> None:
        """Everything before `position` has been sent; the file is emptied when that is all."""
        with self._mutex:
            self._sent = position
            if self._sent >= self._end:
                os.ftruncate(self._file.fileno(), 0)
                self._sent = self._end = 0

    def close(self) -> None:
        """Give the file up: deleted where all has been sent, else left for the next process."""
        with self._mutex:
            if not self.pending:
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _write(self, data: bytes) -> None:
        with self._mutex:
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                os.ftruncate(self._file.fileno(), self._end)  # no half line
                raise
            self._end = os.fstat(self._file.fileno()).st_size

    def _take_over(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if path == self.path:
                continue
            with path.open("r+b", buffering=0) as other:
                if _lock(other):
                    data = other.read()
                    self._write(data if data.endswith(b"\n") or not data else data + b"\n")
                    path.unlink()


def _parse(line: bytes) -> Event | None:
    """The event of one line; None for a line that was cut by a full disk or a kill."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "op" in event else None
