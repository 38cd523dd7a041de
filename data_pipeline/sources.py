"""Where rows come from: JSON-lines files, found by name, and read in byte ranges by many processes at once.

A range owns the lines that begin in it. So a file of any size is read in parallel and in bounded memory, every line has
a place (file, offset, size) by which it is read again without reading what lies before it, and one malformed line costs
nothing but itself.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

# The split a file holds, by how its name begins; "val" and "validation" are other names of "dev".
_SPLIT_NAMES = {"train": "train", "dev": "dev", "val": "dev", "validation": "dev", "test": "test"}


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


def find_files(pattern: str) -> list[Path]:
    """The files that `pattern` names, absolute and sorted: a file, a glob (** too), or a folder's *.jsonl.

    Raises `UserError` where there is none.
    """
    path = Path(pattern).expanduser().absolute()
    if path.is_file():
        return [path]
    matches = path.glob("*.jsonl") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(match for match in matches if match.is_file())
    if not files:
        raise UserError(
            f"There is no file at {pattern}; give a .jsonl file, a glob in quotes, or a folder with .jsonl files."
        )
    return files


def find_split_files(source: str | Mapping[str, str]) -> dict[str, list[Path]] | None:
    """The files of each split, where files give the splits; None where `source` is one body of rows, yet to be split.

    source: {split: file, glob or folder}, or a folder whose files are named train*.jsonl, dev*|val*.jsonl, test*.jsonl
    (or stand in folders of such names). Raises `UserError` where a name finds nothing or a file is in two splits.
    """
    if isinstance(source, str):
        found = _named_splits(Path(source).expanduser().absolute())
    else:
        found = {name: find_files(pattern) for name, pattern in source.items()}
    seen: dict[Path, str] = {}
    for name, files in (found or {}).items():
        for path in files:
            if path in seen:
                raise UserError(f"{path} is in the splits {seen[path]} and {name}; give each file to one split.")
            seen[path] = name
    return found


def _named_splits(folder: Path) -> dict[str, list[Path]] | None:
    """The splits that the names in a folder tell; None where it is no folder, or has no train split."""
    if not folder.is_dir():
        return None
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        split = _SPLIT_NAMES.get(re.split(r"[^a-z]", path.name.lower())[0])
        if split and path.is_dir() and any(path.glob("*.jsonl")):
            found.setdefault(split, []).extend(find_files(str(path)))
        elif split and path.is_file() and path.suffix == ".jsonl":
            found.setdefault(split, []).append(path)
    return {name: found[name] for name in ("train", "dev", "test") if name in found} if "train" in found else None


def byte_ranges(files: Sequence[Path], size: int) -> list[ByteRange]:
    """The files in ranges of `size` bytes, in order. Raises `UserError` for a file that is empty or cannot be read."""
    ranges = []
    for path in files:
        try:
            total = path.stat().st_size
            path.open("rb").close()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
        if not total:
            raise UserError(f"{path} is empty; give files with one JSON object a line.")
        ranges += [ByteRange(str(path), start, min(start + size, total)) for start in range(0, total, size)]
    return ranges


def read_lines(part: ByteRange) -> Iterator[Line]:
    """The lines that begin in `part`, without their line ends; blank lines too, since they count in line numbers."""
    with open(part.path, "rb") as file:
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
    """The lines at the places (paths[files[i]], offsets[i], sizes[i] bytes), in the order given."""
    lines, current, file = [], None, None
    try:
        for index, offset, size in zip(files, offsets, sizes, strict=True):
            if file is None or index != current:
                if file is not None:
                    file.close()
                current, file = index, open(paths[index], "rb")  # noqa: SIM115
            file.seek(offset)
            lines.append(file.read(size))
    finally:
        if file is not None:
            file.close()
    return lines
