"""A disk that can be filled up, and emptied again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[bool]:
    """A file system of so many bytes (2m, 64m) at `folder`, which is made; False where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave `free` bytes of room on a disk that others may write to; deleting what is returned empties it again."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):  # of what was free somebody may have had some
        file.write(bytes(max(0, shutil.disk_usage(disk).free - free)))
    lacking = free - shutil.disk_usage(disk).free
    if lacking > 0:
        os.truncate(ballast, max(0, ballast.stat().st_size - lacking))
    return ballast
