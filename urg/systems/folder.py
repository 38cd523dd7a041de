"""The folder of a trained system: safetensors, tokenizer, and system.json that says which system it is.

config.json, model.safetensors, tokenizer…   as Hugging Face writes them
system.json                                  {"system": "pair_ranker", "settings": {…}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

SYSTEM_FILE = "system.json"
URG_FILE = "urg.json"


def write_system(folder: Path, system: str, settings: dict[str, Any]) -> None:
    """Say in `folder` which system it holds."""
    content = {"system": system, "settings": settings}
    (folder / SYSTEM_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_system(folder: Path, expected: str) -> dict[str, Any]:
    """The settings that `folder` has for the system `expected`. Raises UserError for any other folder, saying what it
    is."""
    _require_folder(folder, expected)
    if not (folder / SYSTEM_FILE).is_file():
        found = "a URG model" if (folder / URG_FILE).is_file() else f"no trained system (it has no {SYSTEM_FILE})"
        raise UserError(f"{folder} holds {found}, not {expected}: {_mend(expected)}.")
    try:
        content = json.loads((folder / SYSTEM_FILE).read_text(encoding="utf-8"))
        system, settings = str(content["system"]), dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SYSTEM_FILE} is unreadable: export the model again.") from error
    if system != expected:
        raise UserError(f"{folder} holds {system}, not {expected}: {_mend(expected)}.")
    return settings


def _require_folder(folder: Path, expected: str) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} for {expected}: {_mend(expected)}.")


def _mend(expected: str) -> str:
    return f"name the model folder of a run of `python -m urg.train --system {expected}`"
