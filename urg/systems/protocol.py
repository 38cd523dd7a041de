"""What a system is: rows of candidates in, one answer a row out.

    Ranker   scores the candidates of a row; higher is better
    Fuser    writes a new text from a row's candidates and their scores
    System   a name, a kind, and `answer`

`Ranked` makes a system of a ranker (its top candidate is the answer), `FusedBy` of a ranker and a fuser, which need not
be one model. A row that a system cannot answer (the model is not among its candidates, the oracle has no label) gets
None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.ensemble import Ensemble

Scores = NDArray[np.float64]
"""[N], one a candidate, in the row's order. A NaN is no opinion, as the oracle's of a candidate without label; a row in
which a candidate with a label has one has no rank metrics, and one of nothing else is not answered."""
Kind = Literal["model", "closed", "floor", "ranker", "fuser", "ceiling"]
KINDS: tuple[Kind, ...] = (
    "model",
    "closed",
    "floor",
    "ranker",
    "fuser",
    "ceiling",
)  # in the order that tables show them
"""model: one of the ensemble, whose answers are among the candidates; closed: a model beside it."""

Progress = Callable[[str, int, int], None]  # what is being done, rows done, rows in all


def silent(what: str, done: int, of: int) -> None:
    """Shows no progress."""


class SystemUnavailable(UserError):
    """A system cannot run with what was given. The message is the reason that reports show in its place."""


@dataclass(frozen=True)
class Answer:
    """A system's answer to one row: a candidate (`picked`: its index) or a text of its own (`picked` None)."""

    text: str
    picked: int | None = None
    scores: Scores | None = None  # where the system ranks
    used: tuple[int, ...] = ()  # the candidates that a fuser read


@dataclass(frozen=True)
class Fusion:
    """A fused text and the candidates it was made from."""

    text: str
    used: tuple[int, ...]


class Ranker(Protocol):
    """Scores candidates."""

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """The scores [N] of each row's candidates, or None for a row that it cannot rank."""
        ...


class Fuser(Protocol):
    """Writes a text from candidates."""

    def fuse(self, rows: Sequence[TokenizedExample], scores: Sequence[Scores]) -> list[Fusion]:
        """A text for each row; scores[r] [N_r] rank its candidates."""
        ...


class System(Protocol):
    """Answers rows under a name."""

    @property
    def name(self) -> str:
        """The name in tables and files."""
        ...

    @property
    def kind(self) -> Kind:
        """Where it stands in tables."""
        ...

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """One answer a row, in order."""
        ...


@dataclass(frozen=True)
class Setup:
    """What systems are built from."""

    label: str  # the score that the oracle goes by
    models: tuple[str, ...]  # the models among the candidates
    seed: int = 0
    ensemble: Ensemble | None = None  # a loaded URG; None: there is none, for this reason:
    no_ensemble: str = "no URG model was given; name its folder by --model"
    num_beams: int = 4
    max_new_tokens: int | None = None  # None: the model's default
    rank_only: bool = False  # no system that will be asked needs a text of URG's
    progress: Progress = silent
    folders: Mapping[str, str] = field(default_factory=dict)  # by system: the model folder or file that it needs
    ids: tuple[str, ...] | None = None  # of all rows of the split; None: not known beforehand
    device: str | None = None  # of the systems' models; None: a GPU where there is one
    dtype: str = "fp32"  # of their weights and activations: fp32 or bf16
    shared: dict[str, object] = field(default_factory=dict)  # what systems of one setup compute once, by name


FUSING = ("num_beams", "max_new_tokens")
"""The settings of whatever writes texts by a model of its own."""


@dataclass(frozen=True)
class Needs:
    """What a system's answers depend on: names of `Setup.folders`, and of settings of an evaluation."""

    folders: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def top(scores: Scores) -> int:
    """The index of the best score; ties go to the first, a NaN is never picked."""
    return int(np.nanargmax(scores))


@dataclass(frozen=True)
class Ranked:
    """The system whose answer is its ranker's top candidate."""

    name: str
    kind: Kind
    ranker: Ranker
    winner_only: bool = False
    """The scores tell the best candidate, and nothing of the others: the answers have none."""

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """Each row's top candidate."""
        answers: list[Answer | None] = []
        for row, scores in zip(rows, self.ranker.rank(rows), strict=True):
            scores = _checked(self.name, row, scores)
            if scores is None:
                answers.append(None)
                continue
            picked = top(scores)
            answers.append(Answer(row.texts[picked], picked, None if self.winner_only else scores))
        return answers


@dataclass(frozen=True)
class FusedBy:
    """The system whose answer is a text that `fuser` writes after `ranker` has scored the candidates."""

    name: str
    ranker: Ranker
    fuser: Fuser
    kind: Kind = "fuser"

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """A new text for each row that the ranker ranks."""
        rankings = [_checked(self.name, row, s) for row, s in zip(rows, self.ranker.rank(rows), strict=True)]
        ranked = [(row, scores) for row, scores in zip(rows, rankings, strict=True) if scores is not None]
        fusions = iter(self.fuser.fuse([row for row, _ in ranked], [scores for _, scores in ranked]))
        return [None if scores is None else _fused(next(fusions), scores) for scores in rankings]


def _fused(fusion: Fusion, scores: Scores) -> Answer:
    return Answer(fusion.text, None, scores, fusion.used)


def _checked(name: str, row: TokenizedExample, scores: Scores | None) -> Scores | None:
    """The scores, or None where not one is a number. ValueError where they are not one a candidate."""
    if scores is None:
        return None
    if scores.shape != (len(row.texts),):
        raise ValueError(f"{name} gave row {row.id} with {len(row.texts)} candidates the scores {scores.tolist()}")
    return None if np.isnan(scores).all() else scores
