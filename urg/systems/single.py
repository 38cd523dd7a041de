"""A single model of the ensemble: its own candidate, in every row that has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urg.systems.protocol import Answer, Kind, Setup, System

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample


@dataclass(frozen=True)
class SingleModel:
    """Always answers with the (first) candidate of `model`; a row without one gets no answer."""

    name: str
    model: str
    kind: Kind = "model"

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """The model's candidate of each row."""
        return [self._answer(row) for row in rows]

    def _answer(self, row: TokenizedExample) -> Answer | None:
        if self.model not in row.models:
            return None
        index = row.models.index(self.model)
        return Answer(row.texts[index], index)


def single_models(setup: Setup, taken: frozenset[str]) -> list[System]:
    """One system a model, named as the model; `model:NAME` where a system of ours has that name."""
    systems = [SingleModel(f"model:{name}" if name in taken else name, name) for name in setup.models]
    return list[System](systems)
