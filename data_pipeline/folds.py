"""Cross-validation: a split in parts by a hash of the id, so that a row's part depends on nothing but its id."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from data_pipeline.shards import Split, TokenizedExample


class Subset(Split):
    """Some rows of a split, in its order. rows: their places there, int64 [R]."""

    def __init__(self, split: Split, rows: np.ndarray) -> None:
        self.name, self._split, self._rows = split.name, split, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self._split[int(row)] for row in self._rows[index]]
        return self._split[int(self._rows[index])]

    def same_as(self, index: int) -> np.ndarray:
        """As `Split.same_as`, int32 [N]."""
        return self._split.same_as(int(self._rows[index]))

    @cached_property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [self._split.ids[int(row)] for row in self._rows]

    @cached_property
    def n_candidates(self) -> np.ndarray:
        """Candidates of each row, int32 [R]."""
        return self._split.n_candidates[self._rows]

    @cached_property
    def target_tokens(self) -> np.ndarray:
        """Target tokens of each row, int32 [R]."""
        return self._split.target_tokens[self._rows]

    @cached_property
    def encoder_tokens(self) -> np.ndarray:
        """Encoder tokens of each row, int32 [R]."""
        return self._split.encoder_tokens[self._rows]

    def has_label(self, name: str) -> int:
        """In how many rows of the whole split some candidate has the score `name`; raises as `Split.has_label`."""
        return self._split.has_label(name)


def fold_of(row_id: str, folds: int) -> int:
    """The part, 0 to `folds` - 1, of a row. Salted: splits by hash of the id (prepare's `fractions`) do not matter."""
    return int.from_bytes(hashlib.blake2b(f"fold:{row_id}".encode(), digest_size=8).digest(), "big") % folds


def fold_split(split: Split, folds: int, fold: int) -> tuple[Subset, Subset]:
    """(the other parts, to train on; the part `fold`, to measure on). Raises UserError where one of them is empty."""
    inside = np.array([fold_of(row_id, folds) == fold for row_id in split.ids])
    if inside.all() or not inside.any():
        raise UserError(
            f"part {fold} of {folds} of split {split.name} has {inside.sum()} of its {len(inside)} rows: lower folds."
        )
    return _cut(split, inside)


def tenth_split(split: Split) -> tuple[Subset, Subset]:
    """(the other rows, to train on; about a tenth, to choose a model by): as `fold_of` by the id alone, by a hash of
    its own, so that a tenth of each part is taken. Either may be empty."""
    inside = np.array([fold_of(f"tenth:{row_id}", 10) == 0 for row_id in split.ids], dtype=bool)
    return _cut(split, inside)


def _cut(split: Split, inside: NDArray[np.bool_]) -> tuple[Subset, Subset]:
    """(the rows outside, those inside). inside: [rows]."""
    return Subset(split, np.flatnonzero(~inside)), Subset(split, np.flatnonzero(inside))
