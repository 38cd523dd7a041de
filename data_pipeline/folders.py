"""Which files of a folder hold rows, and of which split: by their names, or as `datasets.save_to_disk` lists them.

A folder is an fsspec file system and a path there, so that local and remote ones are read alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.formats import is_data_file

# The split a file holds, by how its name begins; "val" and "validation" are other names of "dev".
_SPLIT_NAMES = {"train": "train", "dev": "dev", "val": "dev", "validation": "dev", "test": "test"}
_SPLITS = ("train", "dev", "test")


def folder_files(system: Any, folder: str) -> list[tuple[str | None, str]]:
    """(split, path) of the files of rows in a folder; split None where it has no train split."""
    if system.exists(f"{folder}/dataset_dict.json"):
        return _saved_splits(system, folder)
    if system.exists(f"{folder}/state.json"):
        return [(None, path) for path in _saved_files(system, folder)]
    entries = sorted(system.ls(folder, detail=True), key=lambda entry: entry["name"])
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        if split := split_named(entry["name"]):
            by_split.setdefault(split, []).extend(_data_files(system, entry))
    if by_split.get("train"):
        return [(split, path) for split in _SPLITS for path in by_split.get(split, [])]
    bare = [path for entry in entries if not _is_folder(entry) for path in _data_files(system, entry)]
    if not bare and any(_is_folder(entry) and _last_part(entry["name"]) == "data" for entry in entries):
        return folder_files(system, f"{folder}/data")  # so lie the files of many hub datasets
    return [(None, path) for path in bare]


def _saved_splits(system: Any, folder: str) -> list[tuple[str | None, str]]:
    """(split, path) of a saved `DatasetDict`, by the names of its splits."""
    try:
        names = json.loads(system.cat_file(f"{folder}/dataset_dict.json"))["splits"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/dataset_dict.json cannot be read ({error}); save the dataset again.") from error
    return [(_SPLIT_NAMES.get(name, name), path) for name in names for path in _saved_files(system, f"{folder}/{name}")]


def _data_files(system: Any, entry: Mapping[str, Any]) -> list[str]:
    """The files of rows that a folder's entry is or, as a folder, holds."""
    if not _is_folder(entry):
        return [entry["name"]] if is_data_file(entry["name"]) else []
    if system.exists(f"{entry['name']}/state.json"):
        return _saved_files(system, entry["name"])
    inside = sorted(system.ls(entry["name"], detail=True), key=lambda each: each["name"])
    return [each["name"] for each in inside if not _is_folder(each) and is_data_file(each["name"])]


def _saved_files(system: Any, folder: str) -> list[str]:
    """The files of a dataset that `save_to_disk` wrote, in its own order."""
    try:
        state = json.loads(system.cat_file(f"{folder}/state.json"))
        return [f"{folder}/{each['filename']}" for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no whole saved dataset ({type(error).__name__}: {error}); save it to disk again."
        ) from error


def _is_folder(entry: Mapping[str, Any]) -> bool:
    return bool(entry["type"] == "directory" or (entry["type"] == "link" and Path(entry["name"]).is_dir()))


def _last_part(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def split_named(path: str) -> str | None:
    """The split that the name of a file or folder tells."""
    return _SPLIT_NAMES.get(re.split(r"[^a-z]", _last_part(path).lower())[0])
