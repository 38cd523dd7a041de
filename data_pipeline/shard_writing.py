"""One Parquet shard: its columns, its bytes, and the statistics of its rows. `shards.py` reads what this writes.

The same examples give the same bytes: the writer's settings are fixed here, and nothing of time or place is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.schema import Example
from data_pipeline.tokenization import Encoded, Template

if TYPE_CHECKING:
    import pyarrow

# Raised when columns or manifest change: part of the configuration's hash, so old sets are never mistaken for new.
SCHEMA_VERSION = 1
SCORE_PREFIX = "score:"
STAGED = ".staged"
"""How the name of a file ends that a worker is still writing."""


def write_shard(
    path: Path,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    score_names: Sequence[str],
    template: Template,
) -> dict[str, Any]:
    """Write one shard, whole or not at all, and return its entry for the manifest: file, rows, bytes, sha256.

    score_names: the columns of scores, the same for every shard of a set. template: what will frame the tokens.
    """
    import pyarrow.parquet

    staged = path.with_name(f"{path.name}.{os.getpid()}{STAGED}")
    pyarrow.parquet.write_table(
        _table(examples, encoded, score_names, template),
        staged,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=["models"],
        write_statistics=False,
        store_schema=True,
        row_group_size=len(examples),
    )
    os.replace(staged, path)
    return {"file": path.name, "rows": len(examples), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _table(
    examples: Sequence[Example], encoded: Sequence[Encoded], score_names: Sequence[str], template: Template
) -> pyarrow.Table:
    """The shard's columns. Lists are ragged; nothing is padded."""
    import pyarrow as pa

    columns = {
        "id": pa.array([row.id for row in examples], pa.string()),
        "instruction": pa.array([row.instruction for row in examples], pa.string()),
        "input": pa.array([row.input for row in examples], pa.string()),
        "output": pa.array([row.output for row in examples], pa.string()),
        "models": pa.array([[each.model for each in row.candidates] for row in examples], pa.list_(pa.string())),
        "texts": pa.array([[each.text for each in row.candidates] for row in examples], pa.list_(pa.string())),
        "cmp_results": pa.array([_comparisons_json(row) for row in examples], pa.string()),
        "question_ids": _ragged([row.question_ids for row in encoded]),
        "response_ids": _ragged_twice([row.response_ids for row in encoded]),
        "target_ids": _ragged([row.target_ids for row in encoded]),
        "n_candidates": pa.array([len(row.candidates) for row in examples], pa.int32()),
        "target_tokens": pa.array([len(row.target_ids) for row in encoded], pa.int32()),
        "encoder_tokens": pa.array([_encoder_tokens(row, template) for row in encoded], pa.int32()),
    }
    for name in score_names:
        columns[SCORE_PREFIX + name] = _ragged([_scores(row, name) for row in examples])
    return pa.table(columns)


def _comparisons_json(example: Example) -> str | None:
    """`cmp_results` as JSON text; null where there is none."""
    return None if example.cmp_results is None else json.dumps(example.cmp_results, ensure_ascii=False)


def _scores(example: Example, name: str) -> np.ndarray:
    """One score of each candidate, float64 [N], NaN = missing."""
    return np.array([candidate.scores.get(name, np.nan) for candidate in example.candidates], dtype=np.float64)


def _encoder_tokens(row: Encoded, template: Template) -> int:
    """What the encoder reads for this row: the template's length, summed over candidates."""
    return sum(template.candidate_length(len(row.question_ids), len(ids)) for ids in row.response_ids)


def _ragged(rows: Sequence[np.ndarray]) -> pyarrow.ListArray:
    """A list column from one array a row, through numpy: no Python number is ever made."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(_offsets(rows), pa.array(np.concatenate(rows)))


def _ragged_twice(rows: Sequence[Sequence[np.ndarray]]) -> pyarrow.ListArray:
    """A list-of-lists column from several arrays a row."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(_offsets(rows), _ragged([part for row in rows for part in row]))


def _offsets(rows: Sequence[Any]) -> pyarrow.Array:
    """Where each row starts, and the end: int32 [R + 1]."""
    import pyarrow as pa

    return pa.array(np.cumsum([0, *(len(row) for row in rows)]), pa.int32())


def shard_statistics(examples: Sequence[Example], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """What the manifest needs to know of a shard's rows, in a form that `merge_statistics` can add up, after JSON too.

    candidates: Counter of N; identical: {rows, candidates}, of which an earlier candidate of the row has the same text;
    models: Counter of names; tokens: Counter of lengths by kind; truncated: Counter of kinds;
    scores: by name {values, rows (with one value or more), sum, sum_of_squares, min, max}.
    """
    tokens: dict[str, Counter[int]] = {"question": Counter(), "response": Counter(), "target": Counter()}
    truncated: Counter[str] = Counter()
    for row in encoded:
        tokens["question"][len(row.question_ids)] += 1
        tokens["response"].update(map(len, row.response_ids))
        tokens["target"].update([len(row.target_ids)] if len(row.target_ids) else [])
        truncated.update(row.truncated)
    repeated = [len(row.candidates) - len({each.text for each in row.candidates}) for row in examples]
    return {
        "candidates": Counter(len(row.candidates) for row in examples),
        "identical": {"rows": sum(map(bool, repeated)), "candidates": sum(repeated)},
        "models": Counter(candidate.model for row in examples for candidate in row.candidates),
        "tokens": tokens,
        "truncated": truncated,
        "scores": _score_statistics(examples),
    }


def _score_statistics(examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """By score: how many values, in how many rows, their sum, sum of squares, and range."""
    values: dict[str, list[float]] = {}
    rows: Counter[str] = Counter()
    for example in examples:
        rows.update({name for candidate in example.candidates for name in candidate.scores})
        for candidate in example.candidates:
            for name, value in candidate.scores.items():
                values.setdefault(name, []).append(value)
    statistics = {}
    for name, numbers in values.items():
        array = np.array(numbers)
        statistics[name] = {"values": len(array), "rows": rows[name], "sum": float(array.sum())}
        statistics[name] |= {"sum_of_squares": float((array**2).sum())}
        statistics[name] |= {"min": float(array.min()), "max": float(array.max())}
    return statistics


def merge_statistics(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of a split from those of its shards, ready for the manifest (plain JSON values, sorted names)."""
    candidates: Counter[int] = Counter()
    models: Counter[str] = Counter()
    truncated: Counter[str] = Counter()
    identical: Counter[str] = Counter({"rows": 0, "candidates": 0})
    tokens: dict[str, Counter[int]] = {"question": Counter(), "response": Counter(), "target": Counter()}
    scores: dict[str, list[dict[str, float]]] = {}
    for part in parts:
        candidates.update(_integer_keys(part["candidates"]))
        identical.update(part["identical"])
        models.update(part["models"])
        truncated.update(part["truncated"])
        for kind, lengths in part["tokens"].items():
            tokens[kind].update(_integer_keys(lengths))
        for name, statistics in part["scores"].items():
            scores.setdefault(name, []).append(statistics)
    total = sum(models.values())
    return {
        "candidates": {"total": total, **distribution(candidates)},
        "identical_candidates": dict(identical),
        "models": dict(sorted(models.items())),
        "tokens": {kind: {**distribution(lengths), "truncated": truncated[kind]} for kind, lengths in tokens.items()},
        "scores": {name: _merged_score(scores[name], total) for name in sorted(scores)},
    }


def _integer_keys(counts: Mapping[Any, int]) -> dict[int, int]:
    """Counts whose keys JSON has made text, as they were."""
    return {int(key): count for key, count in counts.items()}


def distribution(counts: Counter[int]) -> dict[str, Any]:
    """count, min, mean, median, 95th percentile and max of integers given by their counts; count 0 alone for none."""
    count = sum(counts.values())
    if not count:
        return {"count": 0}
    values = sorted(counts)
    cumulative = np.cumsum([counts[value] for value in values])
    at = [values[int(np.searchsorted(cumulative, share * count))] for share in (0.5, 0.95)]
    mean = sum(value * counts[value] for value in values) / count
    return {"count": count, "min": values[0], "mean": round(mean, 4), "median": at[0], "p95": at[1], "max": values[-1]}


def _merged_score(parts: Sequence[dict[str, float]], candidates: int) -> dict[str, Any]:
    """One score over a split; `missing` counts the candidates without it."""
    count = int(sum(part["values"] for part in parts))
    mean = sum(part["sum"] for part in parts) / count
    variance = max(0.0, sum(part["sum_of_squares"] for part in parts) / count - mean**2)
    return {
        "values": count,
        "missing": candidates - count,
        "rows": int(sum(part["rows"] for part in parts)),
        "mean": mean,
        "std": variance**0.5,
        "min": min(part["min"] for part in parts),
        "max": max(part["max"] for part in parts),
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
