"""A file of lines that a killed command goes on with: OUTPUT.part while it is written, OUTPUT when it is whole.

OUTPUT.part         the lines so far; a line that a kill has cut is dropped
OUTPUT.part.json    what they were made of; written while OUTPUT.part is empty
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_pipeline.errors import UserError


@contextmanager
def partial_output(output: Path, source: dict[str, Any], batch: int) -> Iterator[tuple[IO[bytes], int]]:
    """A file to append lines to, which becomes `output` where the block ends well, and how many lines it has already.

    source: what the lines are made of (JSON); lines of an earlier run are kept where it is the same. batch: lines are
    kept in whole batches of so many, so that the others are made in the same batches. Raises UserError where nothing
    can be written, and where another process writes.
    """
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, such as {output / 'fused.jsonl'}.")
    part = output.with_name(output.name + ".part")
    told = part.with_name(part.name + ".json")
    with writing_to(output):
        file = _open(part)
    try:
        with file:
            with writing_to(output):
                kept = _keep(file, part, told, source, batch)
            yield file, kept
        with writing_to(output):
            part.replace(output)
            told.unlink(missing_ok=True)
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()
            told.unlink(missing_ok=True)


@contextmanager
def writing_to(output: Path) -> Iterator[None]:
    """Turn an OSError into a UserError that says why `output` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}): choose another --output.") from error


def _open(part: Path) -> IO[bytes]:
    """The part, this process's alone."""
    part.parent.mkdir(parents=True, exist_ok=True)
    file = part.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process writes {part}: wait for it, or choose another --output.") from None
    except OSError:
        pass  # a file system without locks
    return file


def _keep(file: IO[bytes], part: Path, told: Path, source: dict[str, Any], batch: int) -> int:
    """Cut the part back to the lines that can be kept; returns how many these are."""
    other = _changed(told, source)
    lines, end = (0, 0) if other else _whole_batches(part, batch)
    if lines:
        print(f"{part}: goes on after {lines} rows.", file=sys.stderr)
    elif part.stat().st_size and other:
        print(f"{part} was made of another {' and '.join(other)}: starting over.", file=sys.stderr)
    file.truncate(end)
    if other:
        staged = told.with_name(told.name + ".tmp")
        staged.write_text(json.dumps(source))
        os.replace(staged, told)
    return lines


def _changed(told: Path, source: dict[str, Any]) -> list[str]:
    """The keys of `source` that are not what is told of the part."""
    try:
        old = json.loads(told.read_bytes())
    except (OSError, ValueError):
        old = {}
    return [key for key in source if not isinstance(old, dict) or old.get(key) != source[key]]


def _whole_batches(part: Path, batch: int) -> tuple[int, int]:
    """(lines, bytes) of the whole batches of whole lines that a part begins with."""
    lines = end = position = 0
    with part.open("rb") as written:
        for number, line in enumerate(written, start=1):
            position += len(line)
            if line.endswith(b"\n") and number % batch == 0:
                lines, end = number, position
    return lines, end


def stamp(path: Path) -> list[list[Any]]:
    """What tells whether a file, or a file of a folder, was changed: name, bytes and time."""
    files = sorted(path.iterdir()) if path.is_dir() else [path.resolve()]
    stats = [(file.name if path.is_dir() else str(file), file.stat()) for file in files]
    return [[name, found.st_size, found.st_mtime_ns] for name, found in stats]
