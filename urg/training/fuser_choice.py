"""Which candidates GenFuser is trained to fuse: the best by label, some at random, or, as in use, the best by what a
system said of them in `urg.evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.shard_writing import file_sha256
from data_pipeline.shards import ShardSet, Split, TokenizedExample
from urg.config import TrainConfig
from urg.system_config import BY_LABEL, RANDOM
from urg.systems.protocol import Scores
from urg.systems.random import RandomScores
from urg.training.plan import training_and_dev, training_rows

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("id", "system", "models", "scores", "picked", "text")
"""What predictions.parquet must have (`urg.evaluation.results.predictions_table`)."""
MEND = "give predictions.parquet of urg.evaluate"

Line = dict[str, Any]
"""Some columns of what a system made of a row's candidates."""


def candidate_scores(config: TrainConfig) -> Callable[[TokenizedExample], np.ndarray]:
    """A function that gives a row's candidates the scores [N] that the K best are chosen by. UserError for unusable
    predictions."""
    if config.fuser.choose == BY_LABEL:
        return lambda row: row.scores[config.data.label]
    if config.fuser.choose == RANDOM:
        return RandomScores(config.seed).scores
    found = scores_by_row(config.fuser.predictions or (), config.fuser.choose)
    return lambda row: found[row.id]


def require_predictions(config: TrainConfig, shards: ShardSet) -> None:
    """Raise UserError where `fuser.predictions` lack a row that the run reads, or are of other candidates: here, once,
    and not in every worker."""
    files, system = _files(config), config.fuser.choose
    if not files:
        return
    found = _lines(files, system, COLUMNS)
    train, dev = training_and_dev(config, shards)
    _require(found, system, train, training_rows(config, train))
    _require(found, system, dev, min(len(dev), config.eval.rows or len(dev)))


def predictions_digests(config: TrainConfig) -> list[str]:
    """SHA-256 of each file of `fuser.predictions` that the run reads: with others it would be another run."""
    return [file_sha256(Path(file)) for file in _files(config)]


def _files(config: TrainConfig) -> Sequence[str]:
    """Those of `fuser.predictions`, where it is a fuser that is trained."""
    return (config.fuser.predictions or ()) if config.system == "gen_fuser" else ()


def _require(found: dict[str, Line], system: str, split: Split, rows: int) -> None:
    lacking = [row_id for row_id in split.ids[:rows] if row_id not in found]
    if lacking:
        raise UserError(
            f"fuser.predictions: {system} has no scores of {len(lacking)} of the {rows} rows that the run reads of "
            f"split {split.name}, such as {lacking[0]}; name a file of urg.evaluate --split {split.name} that has them."
        )
    for row in (split[index] for index in range(rows)):
        if not _is_of(found[row.id], row):
            raise UserError(
                f"fuser.predictions: row {row.id} has other candidates there than in data.shards; evaluate {system} on "
                f"split {split.name} of these."
            )


def _is_of(line: Line, row: TokenizedExample) -> bool:
    """Whether it was made of the row's candidates, as far as it tells. picked: null where the text is of its own."""
    picked = line["picked"]
    return tuple(line["models"]) == row.models and (picked is None or row.texts[picked] == line["text"])


def scores_by_row(files: Sequence[str], system: str) -> dict[str, Scores]:
    """The scores [N] of a system by row id, NaN = no opinion, of those rows that it gave scores. Raises UserError for a
    file that is none, for a system that has no scores in any, and for a row that stands there twice."""
    found = _lines(files, system, ("id", "scores"))
    return {row_id: np.array(line["scores"], dtype=np.float64) for row_id, line in found.items()}  # None becomes NaN


def _lines(files: Sequence[str], system: str, columns: Sequence[str]) -> dict[str, Line]:
    """`scores_by_row`, but whole lines of these columns."""
    found: dict[str, Line] = {}
    for file in files:
        for line in _scored(file, columns, [("system", "==", system)]).to_pylist():
            if line["id"] in found:
                raise UserError(f"fuser.predictions: {system} has row {line['id']} twice there; name one file of it.")
            found[line["id"]] = line
    if not found:
        others = {name for file in files for name in _scored(file, ("system", "scores"))["system"].to_pylist()}
        known = ", ".join(sorted(others)) or "no system"
        raise UserError(f"fuser.choose={system!r}: fuser.predictions have scores of {known}; choose from these.")
    return found


def _scored(file: str, columns: Sequence[str], filters: list[tuple[str, str, str]] | None = None) -> pyarrow.Table:
    """Columns, "scores" among them, of the lines of a predictions.parquet that have scores and pass the filters."""
    import pyarrow
    import pyarrow.parquet

    try:
        lacking = [name for name in COLUMNS if name not in pyarrow.parquet.read_schema(file).names]
        if lacking:
            raise UserError(f"fuser.predictions: {file} has no column {lacking[0]}; {MEND}.")
        table = pyarrow.parquet.read_table(file, columns=list(columns), filters=filters)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"fuser.predictions: {file} cannot be read ({type(error).__name__}); {MEND}.") from error
    return table.filter(table["scores"].is_valid())
