"""Every input as plain JSON lines on local disk, which is what the plans read in byte ranges, twice.

Plain local files are read where they lie. Whatever is compressed, columnar or remote is turned into plain lines once,
in a stream, below the output root: root/sources/<key>/<name>.jsonl, the key standing for the content. Line n of it is
row n of the original, so that the quarantine can name the original's row. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.commit import staging, writing
from data_pipeline.errors import UserError
from data_pipeline.formats import JsonLines, format_of
from data_pipeline.shard_writing import file_sha256
from data_pipeline.sources import SourceFile

# Raised when the lines that a format becomes change.
_VERSION = 2


@dataclass(frozen=True)
class InputFile:
    """One file of rows, ready to be read in byte ranges.

    split: None where the id decides. path: the plain JSON lines. name: the original, as its user knows it.
    format: the original's. revision: the commit of a hub repository.
    """

    split: str | None
    path: Path
    name: str
    format: str = JsonLines.name
    revision: str | None = None


def plain_lines(file: SourceFile, root: Path) -> InputFile:
    """`file` as plain lines, converted where it has to be. root: the locked output root.

    Raises `UserError` where the file is empty, damaged or cannot be reached, and where the root is full.
    """
    form = format_of(file.name)
    if file.is_local and form is JsonLines:
        return InputFile(file.split, Path(file.path), file.name, form.name, file.revision)
    with _reading(file):
        content = file_sha256(Path(file.path)) if file.is_local else file.stamp()
    stem = _stem(file.name, form.endings)
    # A local file may move and be found again; by content alone, one of its twins would remove the other's lines.
    folder = root / "sources" / key([_VERSION, form.name, content, stem if file.is_local else file.name])
    path = folder / f"{stem}.jsonl"
    if content is None or not path.is_file():
        print(f"converting {file.name} to plain lines", flush=True)
        made(folder, root, lambda staged: _write_lines(file, staged / path.name))
    return InputFile(file.split, path, file.name, form.name, file.revision)


def pieces(file: SourceFile) -> Iterator[bytes]:
    """The file as JSON lines, in pieces. Raises `UserError` where it is damaged or cannot be reached."""
    with _reading(file), file.open() as opened:
        yield from format_of(file.name).pieces(opened)


def stream_lines(file: SourceFile) -> Iterator[bytes]:
    """The lines of a file, one after the other, without their line ends; blank ones too, since they count."""
    rest = b""
    for piece in pieces(file):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.rstrip(b"\r") for line in lines)
    if rest:
        yield rest.rstrip(b"\r")


@contextmanager
def _reading(file: SourceFile) -> Iterator[None]:
    """What goes wrong within as a `UserError`. Remote systems' clients raise exceptions of every kind."""
    import pyarrow

    kinds = (OSError, ValueError, EOFError, pyarrow.ArrowException) if file.is_local else Exception
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        told = str(error).replace(file.path, file.name)  # a path of https:// may hold a signature
        problem = " ".join(told.split())[:200].rstrip(".") or type(error).__name__
        raise UserError(f"{file.name} is cut off, damaged or out of reach ({problem}); fetch it again.") from error


def _write_lines(file: SourceFile, path: Path) -> None:
    with path.open("wb") as out:
        for piece in pieces(file):
            out.write(piece)
        if not out.tell():
            raise UserError(f"{file.name} is empty; give files with at least one row.")


def _stem(name: str, endings: Sequence[str]) -> str:
    """The last part of a name without its format's ending."""
    last = name.rsplit("/", 1)[-1]
    return last[: -len(next((end for end in endings if last.lower().endswith(end)), "")) or None]


def made(folder: Path, root: Path, write: Callable[[Path], object]) -> Path:
    """`folder`, filled by `write` in a staging folder and renamed into place; what stood there goes."""
    with staging(root) as staged, writing(root):
        write(staged)
        folder.parent.mkdir(exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(staged, folder)
    return folder


def key(parts: object) -> str:
    """A short name for what `parts` (JSON values) say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
