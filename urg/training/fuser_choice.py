"""Which candidates GenFuser is trained to fuse: the best by label, some at random, or, as in use, the best by what a
system said of them in `urg.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet, Split, TokenizedExample
from urg.config import TrainConfig
from urg.system_config import BY_LABEL, RANDOM
from urg.systems.protocol import Scores
from urg.systems.random import RandomScores
from urg.training.plan import training_and_dev, training_rows

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "system", "models", "scores", "picked", "text")
"""What is read of predictions.parquet (`urg.evaluation.results.predictions_table`)."""
MEND = "give predictions.parquet of urg.evaluate"


@dataclass(frozen=True)
class Prediction:
    """What a system made of a row's candidates."""

    models: tuple[str, ...]
    scores: Scores
    """[N], NaN = no opinion."""
    picked: int | None
    """The candidate that is its answer; None where this is a text of its own."""
    text: str

    def is_of(self, row: TokenizedExample) -> bool:
        """Whether it was made of the row's candidates, as far as it tells."""
        return self.models == row.models and (self.picked is None or row.texts[self.picked] == self.text)


def candidate_scores(config: TrainConfig) -> Callable[[TokenizedExample], np.ndarray]:
    """A function that gives a row's candidates the scores [N] that the K best are chosen by. UserError for unusable
    predictions."""
    if config.fuser.choose == BY_LABEL:
        return lambda row: row.scores[config.data.label]
    if config.fuser.choose == RANDOM:
        return RandomScores(config.seed).scores
    found = read_predictions(config.fuser.predictions or (), config.fuser.choose)
    return lambda row: found[row.id].scores


def require_predictions(config: TrainConfig, shards: ShardSet) -> None:
    """Raise UserError where `fuser.predictions` lack a row that the run reads, or are of other candidates: here, once,
    and not in every worker."""
    own = config.fuser
    if config.system != "gen_fuser" or own.predictions is None:
        return
    found = read_predictions(own.predictions, own.choose)
    train, dev = training_and_dev(config, shards)
    _require(found, own.choose, train, training_rows(config, train))
    _require(found, own.choose, dev, min(len(dev), config.eval.rows or len(dev)))


def _require(found: dict[str, Prediction], system: str, split: Split, rows: int) -> None:
    lacking = [row_id for row_id in split.ids[:rows] if row_id not in found]
    if lacking:
        raise UserError(
            f"fuser.predictions: {system} has no scores of {len(lacking)} of the {rows} rows that the run reads of "
            f"split {split.name}, such as {lacking[0]}; name a file of urg.evaluate --split {split.name} that has them."
        )
    for row in (split[index] for index in range(rows)):
        if not found[row.id].is_of(row):
            raise UserError(
                f"fuser.predictions: row {row.id} has other candidates there than in data.shards; evaluate {system} on "
                f"split {split.name} of these."
            )


def read_predictions(files: Sequence[str], system: str) -> dict[str, Prediction]:
    """The predictions of a system by row id, of those rows that it gave scores. Raises UserError for a file that is
    none, for a system that has no scores in any, and for a row that stands there twice."""
    import pyarrow.compute

    found: dict[str, Prediction] = {}
    others: set[str] = set()
    for file in files:
        table = _scored(Path(file))
        others |= set(table["system"].unique().to_pylist())
        for line in table.filter(pyarrow.compute.equal(table["system"], system)).to_pylist():
            if line["id"] in found:
                raise UserError(f"fuser.predictions: {system} has row {line['id']} twice there; name one file of it.")
            scores = np.array(line["scores"], dtype=np.float64)  # None becomes NaN
            found[line["id"]] = Prediction(tuple(line["models"]), scores, line["picked"], line["text"])
    if not found:
        known = ", ".join(sorted(others)) or "no system"
        raise UserError(f"fuser.choose={system!r}: fuser.predictions have scores of {known}; choose from these.")
    return found


def _scored(file: Path) -> pyarrow.Table:
    """The lines of a predictions.parquet that have scores."""
    import pyarrow
    import pyarrow.parquet

    try:
        lacking = [name for name in COLUMNS if name not in pyarrow.parquet.read_schema(file).names]
        table = pyarrow.parquet.read_table(file, columns=[name for name in COLUMNS if name not in lacking])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"fuser.predictions: {file} cannot be read ({type(error).__name__}); {MEND}.") from error
    if lacking:
        raise UserError(f"fuser.predictions: {file} has no column {lacking[0]}; {MEND}.")
    return table.filter(table["scores"].is_valid())
