"""Predictions that the user brings, such as ChatGPT's, which is no candidate: JSON lines with `id` and `text`."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from urg.systems.folder import named_folder
from urg.systems.protocol import Answer, Kind, Setup

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample


@dataclass(frozen=True)
class Imported:
    """Answers with the text that the file has for a row's id."""

    name: str
    path: Path
    texts: dict[str, str]
    kind: Kind = "closed"

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """The texts, as answers of its own. Raises UserError for a row without one."""
        require_ids(self.path, self.texts, [row.id for row in rows])
        return [Answer(self.texts[row.id]) for row in rows]


def imported(setup: Setup) -> Imported:
    """The predictions of the file that was named.

    SystemUnavailable where none was; UserError for an unusable one.
    """
    path = Path(named_folder(setup, "imported")).expanduser()
    texts = read_predictions(path)
    if setup.ids is not None:
        require_ids(path, texts, (), setup.ids)
    return Imported("imported", path, texts)


def imported_files(
    files: Mapping[str, str], taken: Container[str], wanted: Sequence[str], known: Sequence[str]
) -> dict[str, Imported]:
    """A system for each file, by the name that was given to it. UserError for a name that is another system's, and for
    an unusable file. wanted: ids of the rows that will be asked for; known: of all rows of their split."""
    found = {}
    for name, file in files.items():
        if name in taken or "," in name:
            raise UserError(f"imported.{name}: is the name of another system, or has a comma; give {file} another.")
        path = Path(file).expanduser()
        found[name] = Imported(name, path, read_predictions(path))
        require_ids(path, found[name].texts, wanted, known)
    return found


def read_predictions(path: Path) -> dict[str, str]:
    """The text of each id. Raises UserError, naming the line, for what is no prediction and for an id that stands
    twice."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the predictions {path} cannot be read ({type(error).__name__}): give JSON lines.") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row_id, text = _prediction(path, number, line)
        if row_id in texts:
            raise UserError(f"{path} has the id {row_id} more than once, again in line {number}: keep one of them.")
        texts[row_id] = text
    return texts


def require_ids(path: Path, texts: dict[str, str], wanted: Iterable[str], known: Iterable[str] | None = None) -> None:
    """Raise UserError where a wanted id lacks, or where there is one that is not among those known (None: any is)."""
    ids = set(wanted)
    missing = sorted(ids - texts.keys())
    extra = sorted(texts.keys() - set(known)) if known is not None else []
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} of {len(ids)} rows, such as {missing[0]}")
    if extra:
        problems.append(f"has {len(extra)} ids that are not in the split, such as {extra[0]}")
    if problems:
        raise UserError(f"the predictions {path} {' and '.join(problems)}: give one for each row of the split.")


def _prediction(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("id") in (None, ""):
        raise UserError(f'{path}, line {number} is no prediction: give a line {{"id": …, "text": "…"}} for each row.')
    return str(row["id"]), row["text"]
