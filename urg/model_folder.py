"""What stands in an exported model's folder beside the weights: the file that says it is URG's, and checksums.

urg.json      what a URG is beyond its weights
SHA256SUMS    the sha256 of each file of weights, as `sha256sum -c` reads it; written last
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from data_pipeline.errors import UserError

SETTINGS_FILE = "urg.json"
SUMS_FILE = "SHA256SUMS"


def seal(folder: Path, like: str) -> None:
    """The last step of an export: the weights' checksums; and their mode, that of the file `like` beside them.

    safetensors writes for the owner alone; `like` was made as the umask says.
    """
    from data_pipeline.shard_writing import file_sha256

    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        shutil.copymode(folder / like, file)
    (folder / SUMS_FILE).write_text("".join(f"{file_sha256(file)}  {file.name}\n" for file in weights))


def require_unaltered(folder: Path) -> None:
    """Raise UserError, naming the file, where weights are not what was exported. A folder without checksums passes.

    Reads all weights: about a second a GB.
    """
    from data_pipeline.shard_writing import file_sha256

    try:
        sums = (folder / SUMS_FILE).read_text().splitlines() if (folder / SUMS_FILE).exists() else []
        for expected, _, name in (line.partition("  ") for line in sums):
            if file_sha256(folder / name) != expected:
                raise UserError(
                    f"{folder / name} is damaged or was altered: its checksum is not the one in {SUMS_FILE}; "
                    "copy or export the model again."
                )
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise UserError(
            f"{getattr(error, 'filename', None) or folder / SUMS_FILE} cannot be read ({reason}): "
            "copy or export the model again."
        ) from error


def count_parameters(folder: Path) -> int | None:
    """How many parameters the weights in a folder are, by the files' headers; None where there is no such file."""
    total = 0
    for file in folder.glob("*.safetensors"):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            total += sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
            return None  # damaged: loading it says so
    return total or None


def require_urg(folder: Path) -> None:
    """Raise UserError for a folder that holds no URG."""
    if not (folder / SETTINGS_FILE).is_file():
        raise UserError(f"{folder} is no URG model (no {SETTINGS_FILE}): name the model folder of a training run.")
