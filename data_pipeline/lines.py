"""Plain JSON-lines files, read in byte ranges by many processes at once.

A range owns the lines that begin in it. So a file of any size is read in parallel and in bounded memory, every line has
a place (file, offset, size) by which it is read again without reading what lies before it, and one malformed line costs
nothing but itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class ByteRange:
    """The part of a file from byte `start` up to `end`."""

    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Line:
    """One line: its number within its range from 0, its first byte within the file, and its bytes."""

    number: int
    offset: int
    raw: bytes


def byte_ranges(files: Sequence[Path], size: int) -> list[ByteRange]:
    """The files in ranges of `size` bytes, in order. Raises `UserError` for a file that is empty or cannot be read."""
    ranges = []
    for path in files:
        with _reading(path):
            total = path.stat().st_size
            path.open("rb").close()
        if not total:
            raise UserError(f"{path} is empty; give files with one JSON object a line.")
        ranges += [ByteRange(str(path), start, min(start + size, total)) for start in range(0, total, size)]
    return ranges


def read_lines(part: ByteRange) -> Iterator[Line]:
    """The lines that begin in `part`, without their line ends; blank lines too, since they count in line numbers.

    Raises `UserError` where the file cannot be read.
    """
    with _reading(part.path), open(part.path, "rb") as file:
        if part.start:
            file.seek(part.start - 1)
            file.readline()  # the line that the range before this one owns, or just its line end
        number = 0
        while (offset := file.tell()) < part.end:
            raw = file.readline()
            if not raw:
                return
            yield Line(number, offset, raw.rstrip(b"\r\n"))
            number += 1


def read_places(
    paths: Sequence[str], files: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
) -> list[bytes]:
    """The lines at the places (paths[files[i]], offsets[i], sizes[i] bytes), in the order given.

    Raises `UserError` where a file cannot be read.
    """
    lines: list[bytes] = []
    for index, run in itertools.groupby(zip(files, offsets, sizes, strict=True), key=lambda place: place[0]):
        with _reading(paths[index]), open(paths[index], "rb") as file:
            for _, offset, size in run:
                file.seek(offset)
                lines.append(file.read(size))
    return lines


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn an OSError within into a `UserError` that names the file, so that none is taken for one of writing."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path} cannot be read ({reason}); check its permissions, and that every node has it."
        ) from error
