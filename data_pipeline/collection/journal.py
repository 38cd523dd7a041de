"""The journal of one model: every answer it gave, a line each, appended the moment it came.

A line reaches the operating system before the next question is asked, so a killed process loses nothing that was
answered; it reaches the disk (fsync) with the next batch, so a machine that loses power loses a second's answers at
most. A last line cut short is dropped when the journal is opened again. Lines are found by key: answers to another
text, or under other settings, stay in the file and are not used.
"""

from __future__ import annotations

import errno
import json
import os
from array import array
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from types import TracebackType

from data_pipeline.commit import writing

_SYNC_EVERY = 64
_SYNC_AFTER_S = 1.0
_NONE = -1


def request_key(model_key: str, prompt_key: bytes) -> str:
    """What one answer belongs to: 32 hexadecimal digits of the model's settings and the prompt."""
    return blake2b(model_key.encode() + prompt_key, digest_size=16).hexdigest()


class Journal:
    """Answers by row, in a file at `path`. keys: the row of each request key; other keys in the file are not used.

    unused: lines of other keys; damaged: unreadable ones; both as the journal was opened.
    """

    def __init__(self, path: Path, keys: Mapping[str, int]) -> None:
        self.path = path
        self.unused = self.damaged = 0
        self._offsets = array("q", [_NONE]) * len(keys)  # 8 bytes an answer: the texts stay on disk
        self._unsynced, self._synced_at = 0, monotonic()
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._reader = path.open("rb")
            self._end = self._drop_torn_line()
        self._index(keys)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.sync()
        finally:
            self._file.close()
            self._reader.close()

    def has(self, row: int) -> bool:
        """Whether the row is answered."""
        return self._offsets[row] != _NONE

    def text(self, row: int) -> str:
        """The row's answer; `has(row)` must hold."""
        self._reader.seek(self._offsets[row])
        return str(json.loads(self._reader.readline())["text"])

    def add(self, row: int, key: str, text: str) -> None:
        """Append an answer. Raises `UserError` where the disk does not take it."""
        line = json.dumps({"key": key, "text": text}).encode() + b"\n"
        with writing(self.path.parent):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._offsets[row] = self._end
        self._end += len(line)
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY or monotonic() - self._synced_at >= _SYNC_AFTER_S:
            self.sync()

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

    def _index(self, keys: Mapping[str, int]) -> None:
        """Find the answer of each row; of two with one key the later one counts."""
        offset = 0
        for line in self._reader:
            try:
                record = json.loads(line)
                row = keys.get(record["key"])
                sound = isinstance(record["text"], str)
            except (ValueError, TypeError, KeyError):
                row, sound = None, False
            self.damaged += not sound
            self.unused += sound and row is None
            if sound and row is not None:
                self._offsets[row] = offset
            offset += len(line)
