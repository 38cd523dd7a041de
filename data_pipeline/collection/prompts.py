"""The prompts file: which of its lines are prompts, and where each stands.

A file of any size is read line by line; only each prompt's place and key (some 100 bytes) are held.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.cleaning import id_digest, parse_line
from data_pipeline.errors import RowError, UserError
from data_pipeline.schema import Example, parse_row


@dataclass(frozen=True)
class Prompt:
    """One prompt: the checked row, and its JSON object as it stands in the file."""

    example: Example
    record: dict[str, Any]

    @property
    def key(self) -> bytes:
        """16 bytes that stand for id and text: another text under the same id is another prompt."""
        parts = [self.example.id, self.example.instruction, self.example.input]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


@dataclass
class Prompts:
    """Where the valid prompts of a file stand, in its order, and what was rejected. A prompt's row is its index here.

    offsets, sizes: bytes of each row's line. lengths: characters of its question. lines: its number, from 1. models:
    those that it has candidates of already. input: lines that are not blank.
    """

    path: Path
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    keys: list[bytes] = field(default_factory=list)
    models: list[frozenset[str]] = field(default_factory=list)
    input: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, rows: Iterable[int]) -> Iterator[Prompt]:
        """The prompts of these rows, read as they are taken. UserError where the file has changed since."""
        return read_prompts(self.path, ((self.offsets[row], self.sizes[row], self.keys[row]) for row in rows))


def read_prompts(path: Path, places: Iterable[tuple[int, int, bytes]]) -> Iterator[Prompt]:
    """The prompts at places (first byte, bytes, the key it must have). UserError where there is another one now."""
    try:
        with path.open("rb") as file:
            for offset, size, key in places:
                file.seek(offset)
                yield _parse_unchanged(path, file.read(size), key)
    except OSError as error:
        raise UserError(
            f"The prompts {path} cannot be read ({error.strerror}); put them where all nodes can."
        ) from None


def _parse_unchanged(path: Path, raw: bytes, key: bytes) -> Prompt:
    try:
        prompt = parse_prompt(raw)
    except RowError:
        prompt = None
    if prompt is None or prompt.key != key:
        raise UserError(f"{path} was changed while it was read; run the same command again.")
    return prompt


def parse_prompt(raw: bytes) -> Prompt:
    """The prompt on one line. Raises `RowError` where there is none."""
    record = parse_line(raw)
    return Prompt(parse_row(record, needs_candidates=False), record)


def survey_prompts(path: Path, reject: Callable[[int, RowError, bytes], None]) -> Prompts:
    """Read the file once. reject: told each bad line's number (from 1), error and bytes.

    Raises `UserError` where the file cannot be read or holds no prompt at all.
    """
    prompts, first = Prompts(path), ""
    seen: dict[bytes, int] = {}
    same: dict[frozenset[str], frozenset[str]] = {}
    for number, offset, raw in _lines(path):
        prompts.input += 1
        try:
            prompt = parse_prompt(raw)
            earlier = seen.setdefault(id_digest(prompt.example.id), number)
            if earlier != number:
                raise RowError("duplicate_id", f"id {prompt.example.id} stands on line {earlier} already")
        except RowError as error:
            prompts.rejected[error.reason] += 1
            first = first or f"line {number}: {error}"
            reject(number, error, raw)
            continue
        prompts.offsets.append(offset)
        prompts.sizes.append(len(raw))
        prompts.lengths.append(len(prompt.example.instruction) + len(prompt.example.input))
        prompts.lines.append(number)
        prompts.keys.append(prompt.key)
        models = frozenset(candidate.model for candidate in prompt.example.candidates)
        prompts.models.append(same.setdefault(models, models))  # one object for all rows with the same models
    if not len(prompts):
        reason = f"none of its {prompts.input} lines is one; {first}" if prompts.input else "it is empty"
        example = '{"id": "1", "instruction": "Who wrote Emma?"}'
        raise UserError(f"There is no prompt in {path} ({reason}); give JSON lines, each as {example}.")
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, first byte, bytes) of each line that is not blank."""
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, offset, line.rstrip(b"\r\n")
                offset += len(line)
    except OSError as error:
        raise UserError(f"The prompts {path} cannot be read ({error.strerror}); give a JSON-lines file.") from None
