"""Checkpoints that are whole or not there: a manifest with sizes and checksums is written last, and verified on load.

    <run>/checkpoint-00000100-<attempt>/
        state/            DeepSpeed's state, a part a worker (pickled: loaded only after verification, never from
                          elsewhere)
        model/            the model as a Hugging Face folder (safetensors, fp32)
        train_state.json  step, cursor, best metric, how many workers
        manifest.json     size and sha256 of every file above; written last

The attempt id keeps two attempts at the same step apart. A folder without a manifest is an interrupted write.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shard_writing import file_sha256
from urg.training.state import Refused

MANIFEST = "manifest.json"
STATE = "train_state.json"
PREFIX = "checkpoint-"
RESIZED = ".resized"
"""In the run's folder while it resumes with another number of workers: a copy that these can load."""
Entries = dict[str, dict[str, Any]]
"""Size and checksum by a file's name."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's errors where a disk, a quota or a limit is exhausted."""
SEEN_WITHIN_S = 60.0
"""How long another node may take to see what one has written: a network file system remembers for a while what was not
there (`actimeo`, which must be 30 s at most)."""


def new_folder(run: Path, step: int) -> Path:
    """A path for the checkpoint of a step that no earlier attempt has used."""
    return run / f"{PREFIX}{step:08d}-{uuid.uuid4().hex[:6]}"


def entries(folder: Path, paths: Iterable[Path]) -> Entries:
    """What the manifest of the checkpoint in `folder` says of these of its files, by name; each is then on disk."""
    listed = sorted(paths)
    with ThreadPoolExecutor() as threads:  # a file's checksum leaves the other cores idle
        found = list(threads.map(_entry, listed))
    return {str(path.relative_to(folder)): entry for path, entry in zip(listed, found, strict=True)}


def commit(folder: Path, train_state: dict[str, Any], world: int, known: Entries | None = None) -> None:
    """Write the training state and, last and atomically, the manifest of all files that are there, each of them on
    disk. known: what the manifest says of some, from the workers that wrote them. Raises Refused where one of those is
    not there: it was written to the disk of another node."""
    known = known or {}
    _require_shared(folder, known)
    write_json(folder / STATE, {**train_state, "world": world})
    paths = {path for path in folder.rglob("*") if path.is_file()}
    own = entries(folder, (path for path in paths if str(path.relative_to(folder)) not in known))
    write_json(folder / MANIFEST, {"files": dict(sorted({**known, **own}.items()))})
    for directory in (*{path.parent for path in paths}, folder.parent):
        _sync(directory)


def seen(condition: Callable[[], bool]) -> bool:
    """Whether the condition, on what another node has written, holds, or comes to within SEEN_WITHIN_S."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _require_shared(folder: Path, written: Iterable[str]) -> None:
    for path in (folder / name for name in written):
        if not seen(path.exists):
            raise Refused(
                f"{path}, which a worker has written, is not there for the first one: storage {folder.parents[1]} is "
                "not shared by all nodes. Give a folder that they share (NFS, EFS, FSx, Filestore)."
            )


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None where it is whole. part, parts: look only at every
    `parts`-th file, from number `part` on."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        listed = [(folder / name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST}: it was never finished."
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{folder / MANIFEST} is unreadable."
    for path, size, sha256 in listed[part::parts]:
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or has another size than its manifest says."
        if file_sha256(path) != sha256:
            return f"{path} has been altered: its checksum differs from the manifest's."
    return None


def newest_whole(
    folders: Iterable[Path], find_damage: Callable[[Path], str | None] = damage
) -> tuple[Path | None, list[str]]:
    """The first of these checkpoints that verifies (None without one), and what is wrong with those before it."""
    passed_over: list[str] = []
    for folder in folders:
        wrong = find_damage(folder)
        if wrong is None:
            return folder, passed_over
        passed_over.append(wrong)
    return None, passed_over


def newest_first(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not."""
    return sorted(run.glob(f"{PREFIX}*"), key=_recency, reverse=True)


def remove_unfinished(run: Path) -> None:
    """Delete what interrupted writes have left: checkpoints without a manifest, and the copy for another number of
    workers."""
    shutil.rmtree(run / RESIZED, ignore_errors=True)
    for folder in run.glob(f"{PREFIX}*"):
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)


def is_for_want_of_room(error: Exception, folder: Path) -> bool:
    """Whether a write below `folder` failed because the disk, or the user's share of it, is full."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in FULL
    try:  # torch and safetensors have errors of their own, without a number: what would the system say?
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        return refused.errno in FULL
    return False


def require_whole(folder: Path) -> None:
    """Raise UserError where a checkpoint that the user named is damaged."""
    wrong = damage(folder)
    if wrong:
        raise UserError(f"cannot resume from checkpoint: {wrong} Name another one with --resume, or use --resume auto.")


def last_step(run: Path) -> int:
    """The step of the newest finished checkpoint, whole or not; 0 without one. Reads no more than names."""
    return max((_recency(folder)[0] for folder in run.glob(f"{PREFIX}*") if (folder / MANIFEST).is_file()), default=0)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint that has been verified; `world`: the number of workers that wrote it."""
    stored: dict[str, Any] = json.loads((folder / STATE).read_text())
    return stored


def publish(source: Path, target: Path) -> None:
    """Replace folder `target` by a copy of `source`; a reader sees the old one or the new one, never half of one."""
    staged, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (staged, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, staged)
    if target.exists():
        target.rename(old)
    staged.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one, and on disk."""
    staged = path.with_name(path.name + ".tmp")
    with staged.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def retain(run: Path, newest: Path, keep: int) -> None:
    """Delete a run's finished checkpoints but `newest`, which has just been written, and the `keep` - 1 last ones
    before it: what a run that finds the newest damaged goes back to. (The best model is in the run's `model`.)

    What stands at its step or beyond was passed over as damaged. Ray's own retention knows only what was reported to
    it: a checkpoint that was finished when its worker was killed would stay for ever.
    """
    others = [folder for folder in run.glob(f"{PREFIX}*") if folder != newest and (folder / MANIFEST).is_file()]
    before = [folder for folder in others if _recency(folder)[0] < _recency(newest)[0]]
    kept = sorted(before, key=_recency, reverse=True)[: keep - 1]
    for folder in others:
        if folder not in kept:
            (folder / MANIFEST).unlink()  # first: killed in between, it is an unfinished one
            shutil.rmtree(folder, ignore_errors=True)


def forget_snapshot(run: Path) -> None:
    """Delete Ray Train's snapshot of earlier sessions: what to resume from is read from our manifests alone.

    Ray writes it in place and without a checksum, and no run can start over one that is cut short, has a flipped bit in
    a key, or names a folder that is gone.
    """
    (run / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)


def _entry(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sync(path: Path) -> None:
    """Have what is written of a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _recency(folder: Path) -> tuple[int, float]:
    step = folder.name.removeprefix(PREFIX).split("-")[0]
    return (int(step) if step.isdigit() else -1, folder.stat().st_mtime)
