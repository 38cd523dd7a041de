"""Whether what the systems are made of (`urg.systems.NEEDS`) can be used: the folders and files that are named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from urg.systems import NEEDS
from urg.systems.folder import FOLDERS, SYSTEM_FILE, read_system, require_known


def require_usable(
    folders: Mapping[str, str], systems: Iterable[str], wanted: Sequence[str], known: Sequence[str]
) -> None:
    """Raise UserError for a named folder or file that one of `systems` needs and cannot use; no weights are read.

    wanted: ids of the rows that will be asked for; known: of all rows of their split.
    """
    require_known(folders)
    asked = {name for system in systems for name in (NEEDS[system].folders if system in NEEDS else FOLDERS)}
    for name in [name for name in FOLDERS if name in asked and folders.get(name)]:
        if name == "imported":
            from urg.systems.imported import read_predictions, require_ids

            path = Path(folders[name]).expanduser()
            require_ids(path, read_predictions(path), wanted, known)
        elif name == "judge":
            from urg.systems.judge import load_endpoint

            load_endpoint(folders[name])
        elif name in ("mlm_scoring", "reward_model"):
            from urg.systems.backbone import require_config

            require_config(folders[name], FOLDERS[name])
        else:
            _require_trained(Path(folders[name]).expanduser(), name)


def _require_trained(folder: Path, system: str) -> None:
    if system == "pair_ranker" and not (folder / SYSTEM_FILE).is_file() and holds_pairrm(folder):
        return
    read_system(folder, system)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: export the model again.")


def holds_pairrm(folder: Path) -> bool:
    """Whether a folder has the layout of `llm-blender/PairRM-hf`. Raises UserError for a damaged config.json."""
    if not (folder / "config.json").is_file():
        return False
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is no JSON: copy or download the folder again.") from error
    return "DebertaV2PairRM" in (stored.get("architectures") or [])
