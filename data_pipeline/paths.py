"""The paths that users give."""

from __future__ import annotations

from pathlib import Path


def absolute(name: str | Path) -> Path:
    """The absolute path of what a user named, ~ and .. taken out; symbolic links stay, but where a .. follows them."""
    path = Path(name).expanduser()
    return path.resolve() if ".." in path.parts else path.absolute()
