"""Checkpoints that are whole or not there: a manifest with sizes and checksums is written last, and verified on load.

    <run>/checkpoint-00000100-<attempt>/
        state/            DeepSpeed's state, a part a worker (pickled: loaded only after verification, never from
        elsewhere) model/            the model as a Hugging Face folder (safetensors, fp32) train_state.json  step,
        cursor, best metric manifest.json     size and sha256 of every file above; written last

The attempt id keeps two attempts at the same step apart. A folder without a manifest is an interrupted write.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shard_writing import file_sha256

MANIFEST = "manifest.json"
STATE = "train_state.json"
PREFIX = "checkpoint-"


def new_folder(run: Path, step: int) -> Path:
    """A path for the checkpoint of a step that no earlier attempt has used."""
    return run / f"{PREFIX}{step:08d}-{uuid.uuid4().hex[:6]}"


def commit(folder: Path, train_state: dict[str, Any], world: int) -> None:
    """Write the training state and, last and atomically, the manifest of all files that are there."""
    write_json(folder / STATE, train_state)
    files = {str(path.relative_to(folder)): _entry(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_json(folder / MANIFEST, {"world": world, "step": train_state["step"], "files": files})


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None where it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST}: it was never finished."
    except (ValueError, KeyError, TypeError, OSError):
        return f"{folder / MANIFEST} is unreadable."
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return f"{path} is missing or has another size than its manifest says."
        if file_sha256(path) != expected["sha256"]:
            return f"{path} has been altered: its checksum differs from the manifest's."
    return None


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that verifies (None without one), and what is wrong with those that were passed
    over."""
    passed_over: list[str] = []
    for folder in sorted(run.glob(f"{PREFIX}*"), key=_recency, reverse=True):
        wrong = damage(folder)
        if wrong is None:
            return folder, passed_over
        passed_over.append(wrong)
    return None, passed_over


def remove_unfinished(run: Path) -> None:
    """Delete the folders of interrupted checkpoint writes: those without a manifest."""
    for folder in run.glob(f"{PREFIX}*"):
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)


def require_whole(folder: Path) -> None:
    """Raise UserError where a checkpoint that the user named is damaged."""
    wrong = damage(folder)
    if wrong:
        raise UserError(f"cannot resume from checkpoint: {wrong} Name another one with --resume, or use --resume auto.")


def last_step(run: Path) -> int:
    """The step of the newest finished checkpoint, whole or not; 0 without one. Reads no more than names."""
    return max((_recency(folder)[0] for folder in run.glob(f"{PREFIX}*") if (folder / MANIFEST).is_file()), default=0)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint that has been verified, and the number of workers that wrote it."""
    return {**json.loads((folder / STATE).read_text()), "world": json.loads((folder / MANIFEST).read_text())["world"]}


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


def set_aside_broken_snapshot(run: Path) -> str | None:
    """Rename Ray Train's snapshot where no run can start over it (cut short, or naming lost folders); a line about it.

    Ray does not write it atomically. Nothing is lost: what to resume from is read from our manifests.
    """
    snapshot = run / "checkpoint_manager_snapshot.json"
    try:
        named = [entry["checkpoint_dir_name"] for entry in json.loads(snapshot.read_text())["checkpoint_results"]]
        if all((run / name).is_dir() for name in named):
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    aside = snapshot.with_name(f"{snapshot.name}.broken-{uuid.uuid4().hex[:6]}")
    snapshot.rename(aside)
    return f"Ray's snapshot of this run was unusable and has been set aside as {aside.name}."


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _recency(folder: Path) -> tuple[int, float]:
    step = folder.name.removeprefix(PREFIX).split("-")[0]
    return (int(step) if step.isdigit() else -1, folder.stat().st_mtime)
