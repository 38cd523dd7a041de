"""Prompts that stand in several splits: a model that was trained on a row of the test split is not tested by it.

Two prompts are the same where instruction and input agree after NFKC, case folding, and runs of white space made one
space. With a threshold they are near-duplicates too where the Jaccard similarity of their sets of 5 characters in a row
(of the first 10,000) reaches it. Candidates for that are found by MinHash (128 values a row, banded for recall) and
then compared exactly: no pair is reported that is not one; near the threshold itself a few may be missed.

A row leaks where its prompt stands in a split that is kept for a later use: train < dev (and others) < test.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import Example
from data_pipeline.tokenization import question_text

_USE = {"train": 0, "test": 2}
_PERMUTATIONS = 128
_SEED = 1
_SCHEME: Literal["affine32"] = "affine32"
_SHINGLE = 5
_SHINGLED_CHARACTERS = 10_000
SIGNATURE_BYTES = 4 * _PERMUTATIONS

Rows = NDArray[np.int64]


@dataclass
class Prompts:
    """The prompts of one split, in the order of its rows: 8-byte digests and, where asked for, MinHash signatures."""

    digests: array[int] = field(default_factory=lambda: array("Q"))
    signatures: bytearray = field(default_factory=bytearray)

    def signature(self, row: int) -> NDArray[np.uint32]:
        """The MinHash values of a row, [128]."""
        part = self.signatures[row * SIGNATURE_BYTES : (row + 1) * SIGNATURE_BYTES]
        return np.frombuffer(bytes(part), dtype=np.uint32)

    def repeated(self) -> int:
        """Rows whose prompt an earlier row of the split has."""
        return len(self.digests) - len(np.unique(_numbers(self)))

    def without(self, rows: set[int]) -> Prompts:
        """The same without some rows."""
        kept = [row for row in range(len(self.digests)) if row not in rows]
        size = SIGNATURE_BYTES if self.signatures else 0
        signatures = bytearray().join(self.signatures[row * size : (row + 1) * size] for row in kept)
        return Prompts(array("Q", (self.digests[row] for row in kept)), signatures)


def normalized_prompt(example: Example) -> str:
    """Instruction and input as they are compared."""
    return " ".join(unicodedata.normalize("NFKC", question_text(example.instruction, example.input)).casefold().split())


def prompt_digest(prompt: str) -> int:
    """8 bytes that stand for a normalized prompt: of a million, two differing ones agree once in 30 million sets."""
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")


def prompt_signature(prompt: str) -> bytes:
    """The MinHash values of a normalized prompt, as uint32."""
    sketch = _blank_sketch().copy()
    sketch.update_batch([shingle.encode() for shingle in sorted(_shingles(prompt))])
    return sketch.hashvalues.astype(np.uint32).tobytes()  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _blank_sketch() -> Any:
    """Made once in a process: drawing its permutations costs more than a signature."""
    from datasketch import MinHash

    return MinHash(num_perm=_PERMUTATIONS, seed=_SEED, scheme=_SCHEME)


def _shingles(prompt: str) -> set[str]:
    """All runs of 5 characters; a shorter prompt is its own."""
    text = prompt[:_SHINGLED_CHARACTERS]
    return {text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1))}


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of two normalized prompts, 0..1."""
    one, other = _shingles(first), _shingles(second)
    return len(one & other) / len(one | other)


def find_leaks(
    splits: Mapping[str, Prompts], threshold: float | None, read: Callable[[str, int], str]
) -> dict[str, dict[str, Rows]]:
    """By split, by the later split whose prompts they share: the rows that leak, ascending; pairs without any left out.

    threshold: also for near-duplicates of that similarity, for which every split needs signatures.
    read: the normalized prompt of a row, given split and row.
    """
    found: dict[str, dict[str, Rows]] = {}
    for name, later in by_use(list(splits)):
        shared = np.isin(_numbers(splits[name]), _numbers(splits[later]))
        rows = np.flatnonzero(shared)
        if threshold is not None:
            near = _near(splits, name, later, np.flatnonzero(~shared), threshold, read)
            rows = np.sort(np.concatenate([rows, np.array(near, dtype=np.int64)]))
        if len(rows):
            found.setdefault(name, {})[later] = rows
    return found


def by_use(names: Sequence[str]) -> list[tuple[str, str]]:
    """(split, later split) of all pairs: train < others, by name < test."""
    order = sorted(names, key=lambda name: (_USE.get(name, 1), name))
    return [(name, later) for i, name in enumerate(order) for later in order[i + 1 :]]


def _near(
    splits: Mapping[str, Prompts],
    name: str,
    later: str,
    rows: Rows,
    threshold: float,
    read: Callable[[str, int], str],
) -> list[int]:
    """Those of `rows` of one split that have a near-duplicate in a later one."""
    from datasketch import MinHashLSH

    # Recall weighs more than precision: what is found is compared exactly.
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    for row in range(len(splits[later].digests)):
        index.insert(row, _sketch(splits[later], row))
    found = []
    for row in rows.tolist():
        others = index.query(_sketch(splits[name], row))
        prompt = read(name, row) if others else ""
        if any(similarity(prompt, read(later, int(other))) >= threshold for other in others):
            found.append(row)
    return found


def _sketch(prompts: Prompts, row: int) -> Any:
    from datasketch import LeanMinHash

    return LeanMinHash(seed=_SEED, hashvalues=prompts.signature(row), scheme=_SCHEME)


def _numbers(prompts: Prompts) -> NDArray[np.uint64]:
    return np.frombuffer(prompts.digests, dtype=np.uint64)
