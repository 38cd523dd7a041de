"""The prepared set of a reproduction: found once, and the same until its end, whatever is prepared beside it later."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.errors import UserError
from tuning.reproduction.steps import markers

PIN = "data.json"


def pinned(root: Path, shards: str | None) -> str | None:
    """The user's set by its own folder: the one that the reproduction in `root` began with, else the newest below
    `shards`; None where there is none yet, or the reproduction makes its own. What an older version began has no pin,
    and its steps were run with the path as it was given: that is the pin then."""
    if shards is None:
        return None
    given = str(Path(shards).expanduser().absolute())
    try:
        stored = json.loads((root / PIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    if given in stored:
        return str(stored[given])
    return given if not stored and _was_run_with(root, given) else _folder(given)


def _was_run_with(root: Path, given: str) -> bool:
    """Whether a marker of `root` names this very path."""
    return any(given in json.loads(path.read_text(encoding="utf-8"))["command"] for path in markers(root))


def pin(root: Path, shards: str | None, folder: str | None) -> None:
    """Remember it. Raises UserError where there is no set."""
    from data_pipeline.shards import ShardSet
    from urg.training.checkpoints import write_json

    if shards is None:
        return
    given = str(Path(shards).expanduser().absolute())
    ShardSet.open(folder or given, verify=False)
    write_json(root / PIN, {given: folder})


def data_key(folder: str) -> str | None:
    """What stands for the content of a set; None where there is none yet."""
    from data_pipeline.shards import ShardSet

    try:
        return str(ShardSet.open(folder, verify=False).manifest["key"])
    except UserError:
        return None


def _folder(given: str) -> str | None:
    from data_pipeline.shards import ShardSet

    try:
        return str(ShardSet.open(given, verify=False).folder)
    except UserError:
        return None
