"""What disks and power cuts do to files, drawn by a seed."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

DAMAGES = ("flip", "truncate", "delete", "no manifest", "half a manifest")
SNAPSHOT = "checkpoint_manager_snapshot.json"


def damage(checkpoint: Path, how: str, random: Random) -> Path:
    """Damage one file of a finished checkpoint; returns it."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.stat().st_size]
    path = random.choice([path for path in files if path.name != "manifest.json" or path.parent != checkpoint])
    if "manifest" in how:
        path = checkpoint / "manifest.json"
    if how == "flip":
        flip(path, random.randrange(8 * path.stat().st_size))
    elif how in ("truncate", "half a manifest"):
        os.truncate(path, random.randrange(max(1, path.stat().st_size)))
    else:
        path.unlink()
    return path


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1) or b"\0"
        file.seek(bit // 8)
        file.write(bytes([byte[0] ^ (1 << bit % 8)]))


def break_snapshot(run: Path, random: Random) -> None:
    """Cut Ray's snapshot of a run short, or flip a bit in it."""
    snapshot = run / SNAPSHOT
    size = max(1, snapshot.stat().st_size)
    if random.random() < 0.5:
        os.truncate(snapshot, random.randrange(size))
    else:
        flip(snapshot, random.randrange(8 * size))
