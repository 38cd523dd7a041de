"""The folders that systems need, and that of a trained one: system.json says which system it holds.

config.json, model.safetensors, tokenizer…   as Hugging Face writes them
system.json                                  {"system": "pair_ranker", "settings": {…}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from urg.systems.protocol import Setup, SystemUnavailable

FOLDERS = {
    "mlm_scoring": "a masked language model (folder or hub id)",
    "reward_model": "a sequence-classification model (folder or hub id)",
    "simcls": "the model folder of `python -m urg.train --system simcls`",
    "summareranker": "the model folder of `python -m urg.train --system summareranker`",
    "pair_ranker": "the model folder of `python -m urg.train --system pair_ranker`, or that of llm-blender/PairRM-hf",
    "gen_fuser": "the model folder of `python -m urg.train --system gen_fuser`",
    "judge": "a YAML file with an OpenAI-compatible endpoint (name, base_url, model, api_key_env)",
    "imported": "a file of predictions (JSON lines with id and text); several, each under a name: --imported.NAME FILE",
}
"""What may be named in `Setup.folders`, by system, and what it is."""
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


def require_known(folders: Mapping[str, str]) -> None:
    """Raise UserError for a folder that is named for something which takes none."""
    if unknown := sorted(folders.keys() - FOLDERS):
        raise UserError(f"no system takes a folder named {unknown[0]}; those that do: {', '.join(FOLDERS)}")


def named_folder(setup: Setup, name: str) -> str:
    """The folder or file that was named for a system. SystemUnavailable where none was."""
    folder = setup.folders.get(name)
    if not folder:
        raise SystemUnavailable("no folder or file was named by --folders.NAME; --list says what each of these needs")
    return folder


def _require_folder(folder: Path, expected: str) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} for {expected}: {_mend(expected)}.")


def _mend(expected: str) -> str:
    return f"name {FOLDERS[expected]}"
