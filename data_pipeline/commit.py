"""How a prepared set comes to stand in the output root: staged aside, renamed into place, named by CURRENT.

    root/CURRENT             the name of the newest set
    root/<key>/              one set; the key stands for configuration, tokenizer and content of the input
    root/.staging-…/         work in progress; whatever is left of a killed run is swept by the next one

One process at a time works in a root. A set is whole or absent; a run that fails leaves the sets
before it as they were.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.shards import CURRENT, ShardSet

_STAGING = ".staging-"
_JOBS_FILES = ("runtime_resources", "working_dir_files")
"""Where Ray's sessions have them."""


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn an OSError within into a `UserError` that says that the folder cannot be written, and why."""
    try:
        yield
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
        raise UserError(f"Cannot write to the folder {root} ({reason}); make room, or name another folder.") from error


@contextmanager
def locked(root: Path, busy: str = "prepares data") -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however that ends.

    busy: what a process that holds it does. Raises `UserError` where another one holds it, or it cannot be written, or
    would not last.
    """
    require_lasting(root)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process {busy} in {root}; wait for it, or name another folder.") from None
        except OSError:
            pass  # a file system without locks: runs are the user's to keep apart
        yield


def require_lasting(root: Path) -> None:
    """Raise `UserError` for an output folder below the files that Ray has unpacked for a job, its working directory: a
    relative path in a job. Ray deletes them after the job, and other nodes have their own."""
    if any(pair == _JOBS_FILES for pair in pairwise(root.absolute().parts)):
        raise UserError(
            f"{root} is in the working directory of this job, which Ray deletes: give an absolute path, on several "
            "nodes one that they share."
        )


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A fresh folder below `root` (which must be `locked`), gone at the end unless it was renamed."""
    with writing(root):
        for stale in root.glob(f"{_STAGING}*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
        folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_prepared(folder: Path) -> bool:
    """Whether a whole, undamaged set stands in `folder`: shards and tokenizer are compared with the manifest."""
    if not folder.is_dir():
        return False
    try:
        shards = ShardSet.open(folder)
        shards.tokenizer()
        return shards.folder == folder
    except UserError:
        return False


def commit(staged: Path, folder: Path) -> None:
    """Rename a staged set into place. What stood there, damaged, is moved aside first and then removed."""
    if not folder.exists():
        os.rename(staged, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder.parent))
    os.rename(folder, aside / folder.name)
    os.rename(staged, folder)
    shutil.rmtree(aside, ignore_errors=True)


def name_current(folder: Path) -> None:
    """Make CURRENT in the root name this set, in one step."""
    staged = folder.parent / f".{CURRENT}"
    staged.write_text(f"{folder.name}\n", encoding="utf-8")
    os.replace(staged, folder.parent / CURRENT)
