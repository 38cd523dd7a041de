"""A journal: every answer of a model, a line each, appended the moment it came, and read again by its place.

A line reaches the operating system before the next question is asked, so a killed process loses nothing that was
answered; it reaches the disk (fsync) with the next batch, so a machine that loses power loses a second's answers at
most. A last line cut short is dropped when the journal is opened again. A key stands for what was asked: answers to
other questions stay in the file and are not used.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import TracebackType

from data_pipeline.commit import writing

_SYNC_EVERY = 64
_SYNC_AFTER_S = 1.0


class Journal:
    """Answers under their keys, in a file at `path`, which is made where it is not. The texts stay on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unsynced, self._synced_at = 0, monotonic()
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._reader = path.open("rb")
            self._end = self._drop_torn_line()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.sync()
        finally:
            self._file.close()
            self._reader.close()

    def entries(self) -> Iterator[tuple[bytes | None, int]]:
        """(key, place) of every line, in the order they were added; the key of a line that is unreadable is None.

        Of two lines with one key the later one counts.
        """
        place = 0
        self._reader.seek(0)
        for line in self._reader:
            yield _key(line), place
            place += len(line)

    def text(self, place: int) -> str:
        """The answer at a place."""
        self._reader.seek(place)
        return str(json.loads(self._reader.readline())["text"])

    def add(self, key: bytes, text: str) -> int:
        """Append an answer; its place. Raises `UserError` where the disk does not take it."""
        line = json.dumps({"key": key.hex(), "text": text}).encode() + b"\n"
        with writing(self.path.parent):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        place = self._end
        self._end += len(line)
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY or monotonic() - self._synced_at >= _SYNC_AFTER_S:
            self.sync()
        return place

    def sync(self) -> None:
        """Bring what was added to the disk."""
        if self._unsynced:
            with writing(self.path.parent):
                os.fsync(self._file.fileno())
        self._unsynced, self._synced_at = 0, monotonic()

    def _drop_torn_line(self) -> int:
        """Cut off what stands behind the last line end; the file's length then."""
        size = end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            end = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if end < size:
            self._file.truncate(end)
        return end


def _key(line: bytes) -> bytes | None:
    """The key of a line that holds an answer; None where it holds none."""
    try:
        record = json.loads(line)
        return bytes.fromhex(record["key"]) if isinstance(record["text"], str) else None
    except (ValueError, TypeError, KeyError):
        return None
