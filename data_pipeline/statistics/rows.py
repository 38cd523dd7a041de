"""The rows of any input, one after the other: a source as `prepare` reads it, or a prepared set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.cleaning import Repairs, Rules, clean_line
from data_pipeline.conversion import stream_lines
from data_pipeline.errors import RowError, UserError
from data_pipeline.schema import Candidate, Example
from data_pipeline.shards import CURRENT, MANIFEST, TOKENIZER, ShardSet, TokenizedExample
from data_pipeline.sources import SourceFile, list_source, shown_input
from data_pipeline.survey import no_valid_row

ALL = "all"
"""The split of rows whose source names none."""


@dataclass
class Reading:
    """What was met on the way, complete when the last row was taken.

    rejected: by reason. first_rejected: one sentence on the first of them.
    """

    repairs: Repairs = field(default_factory=Repairs)
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""


def is_prepared_set(name: object) -> bool:
    """Whether an input is a prepared set, or the root of some."""
    if not isinstance(name, str):
        return False
    folder = Path(name).expanduser()
    if (folder / CURRENT).is_file():
        return True
    try:  # collected and labelled rows have a manifest beside them too, of another kind
        return "schema_version" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, TypeError):
        return (folder / TOKENIZER).is_dir()  # damaged: opening it says so


def source_rows(files: list[SourceFile], rules: Rules, reading: Reading) -> Iterator[tuple[str, Example]]:
    """(split, row) of every valid row; the others are counted in `reading`. Raises `UserError` where none is valid."""
    found = 0
    for file in files:
        number = 0
        for number, line in enumerate(stream_lines(file), start=1):
            if not line.strip():
                continue
            try:
                example = clean_line(line, rules, reading.repairs)
            except RowError as error:
                reading.rejected[error.reason] += 1
                reading.first_rejected = reading.first_rejected or f"{file.name} line {number}: {error}"
                continue
            found += 1
            yield file.split or ALL, example
        if not number:
            raise UserError(f"{file.name} is empty; give files with one JSON object a line.")
    if not found:
        raise no_valid_row("the input", reading.rejected, reading.first_rejected)


def prepared_rows(shards: ShardSet, reading: Reading) -> Iterator[tuple[str, Example]]:
    """(split, row) of a prepared set; what preparing it rejected and repaired is taken from its manifest."""
    manifest = shards.manifest
    reading.rejected.update(manifest["totals"]["rejected"])
    repairs = manifest["repairs"]
    reading.repairs.zero_scores.update(repairs["zero_scores_taken_as_missing"])
    reading.repairs.aliased.update({name: entry["candidates"] for name, entry in repairs["aliased_models"].items()})
    reading.repairs.add_unusable(repairs.get("unusable_scores", {}))
    reading.repairs.repeated_models.update(repairs.get("repeated_models", {}))
    reading.repairs.characters.update(manifest.get("characters", {}).get("texts", {}))
    for name in shards.splits:
        for row in shards.split(name):
            yield name, _example(row)


def _example(row: TokenizedExample) -> Example:
    candidates = tuple(
        Candidate(model, "", text, {name: float(of[i]) for name, of in row.scores.items() if of[i] == of[i]})
        for i, (model, text) in enumerate(zip(row.models, row.texts, strict=True))
    )
    return Example(row.id, row.instruction, row.input, row.output, candidates, row.cmp_results)


def open_input(
    name: str | Mapping[str, str], rules: Rules, reading: Reading
) -> tuple[Iterator[tuple[str, Example]], ShardSet | None]:
    """The rows of an input, and the prepared set where it is one. Raises `UserError` where there is nothing to read."""
    if is_prepared_set(name):
        shards = ShardSet.open(str(name), verify=False)
        return prepared_rows(shards, reading), shards
    return source_rows(list_source(name), rules, reading), None


def describe(shards: ShardSet | None, name: str | Mapping[str, str]) -> dict[str, Any]:
    """What was read, for the report: a prepared set with its sources, or the names given."""
    if shards is None:
        return {"input": shown_input(name)}
    return {
        "input": str(shards.folder),
        "sources": [source["file"] for source in shards.manifest["sources"]],
    }
