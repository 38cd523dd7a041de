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

from data_pipeline.encoding import EncodedRows, Tokens, run_offsets
from data_pipeline.schema import Example
from data_pipeline.tokenization import Template

if TYPE_CHECKING:
    import pyarrow

# Raised when columns or manifest change: part of the configuration's hash, so old sets are never mistaken for new.
SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no column same_as."""
SCORE_PREFIX = "score:"
STAGED = ".staged"
"""How the name of a file ends that a worker is still writing."""


def write_shard(
    path: Path,
    examples: Sequence[Example],
    encoded: EncodedRows,
    scores: Mapping[str, np.ndarray],
    template: Template,
) -> dict[str, Any]:
    """Write one shard, whole or not at all, and return its entry for the manifest: file, rows, bytes, sha256.

    scores: of `flat_scores`; the names are the same for every shard of a set. template: what will frame the tokens.
    """
    import pyarrow.parquet

    staged = path.with_name(f"{path.name}.{os.getpid()}{STAGED}")
    pyarrow.parquet.write_table(
        _table(examples, encoded, scores, template),
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


def flat_scores(examples: Sequence[Example], names: Sequence[str]) -> dict[str, np.ndarray]:
    """By name, the score of each candidate, one row's candidates after the other: float64 [sum of N], NaN = missing."""
    scores = [candidate.scores for row in examples for candidate in row.candidates]
    return {name: np.array([own.get(name, np.nan) for own in scores], dtype=np.float64) for name in names}


def _table(
    examples: Sequence[Example], encoded: EncodedRows, scores: Mapping[str, np.ndarray], template: Template
) -> pyarrow.Table:
    """The shard's columns. Lists are ragged; nothing is padded."""
    import pyarrow as pa

    candidates = [candidate for row in examples for candidate in row.candidates]
    rows, text = run_offsets(encoded.n_candidates), pa.string()
    columns = {
        "id": pa.array([row.id for row in examples], text),
        "instruction": pa.array([row.instruction for row in examples], text),
        "input": pa.array([row.input for row in examples], text),
        "output": pa.array([row.output for row in examples], text),
        "models": _lists(rows, pa.array([each.model for each in candidates], text)),
        "texts": _lists(rows, pa.array([each.text for each in candidates], text)),
        "same_as": _lists(rows, pa.array(_same_as(examples), pa.int32())),
        "cmp_results": pa.array([_comparisons_json(row) for row in examples], text),
        "question_ids": _token_lists(encoded.questions),
        "response_ids": _lists(rows, _token_lists(encoded.responses)),
        "target_ids": _token_lists(encoded.targets),
        "n_candidates": pa.array(encoded.n_candidates),
        "target_tokens": pa.array(encoded.targets.lengths),
        "encoder_tokens": pa.array(_encoder_tokens(encoded, rows, template)),
    }
    for name, values in scores.items():
        columns[SCORE_PREFIX + name] = _lists(rows, pa.array(values))
    return pa.table(columns)


def _same_as(examples: Sequence[Example]) -> list[int]:
    """`first_alike` of each row, one row after the other."""
    return [first for row in examples for first in first_alike([candidate.text for candidate in row.candidates])]


def first_alike(texts: Sequence[str]) -> list[int]:
    """For each text the index of the first that is the same: its own where none is before it."""
    first: dict[str, int] = {}
    return [first.setdefault(text, index) for index, text in enumerate(texts)]


def _comparisons_json(example: Example) -> str | None:
    """`cmp_results` as JSON text; null where there is none."""
    return None if example.cmp_results is None else json.dumps(example.cmp_results, ensure_ascii=False)


def _encoder_tokens(encoded: EncodedRows, rows: np.ndarray, template: Template) -> np.ndarray:
    """What the encoder reads for each row: the template's length, summed over candidates; int32 [R]."""
    responses = np.diff(encoded.responses.offsets[rows])
    own = encoded.n_candidates * template.candidate_length(0, 0)
    return (responses + encoded.n_candidates * encoded.questions.lengths + own).astype(np.int32)


def _lists(offsets: np.ndarray, values: pyarrow.Array) -> pyarrow.ListArray:
    """A list column through numpy: no Python number is ever made."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _token_lists(tokens: Tokens) -> pyarrow.ListArray:
    import pyarrow as pa

    return _lists(tokens.offsets, pa.array(tokens.ids))


def shard_statistics(
    examples: Sequence[Example], encoded: EncodedRows, scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What the manifest needs to know of a shard's rows, in a form that `merge_statistics` can add up, after JSON too.

    candidates: counts of N; identical: {rows, candidates}, of which an earlier candidate of the row has the same text;
    models: Counter of names; tokens: counts of lengths by kind; truncated: counts by kind;
    scores: by name {values, rows (with one value or more), sum, sum_of_squares, min, max}.
    """
    repeated = [len(row.candidates) - len({each.text for each in row.candidates}) for row in examples]
    targets = encoded.targets.lengths
    kinds = {"question": encoded.questions, "response": encoded.responses, "target": encoded.targets}
    return {
        "candidates": _counts(encoded.n_candidates),
        "identical": {"rows": sum(map(bool, repeated)), "candidates": sum(repeated)},
        "models": Counter(candidate.model for row in examples for candidate in row.candidates),
        "tokens": {
            "question": _counts(encoded.questions.lengths),
            "response": _counts(encoded.responses.lengths),
            "target": _counts(targets[targets > 0]),
        },
        "truncated": {kind: int(tokens.cut.sum()) for kind, tokens in kinds.items()},
        "scores": _score_statistics(encoded.n_candidates, scores),
    }


def _counts(lengths: np.ndarray) -> dict[int, int]:
    """How often each of these integers is there."""
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _score_statistics(n_candidates: np.ndarray, scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By score: how many values, in how many rows, their sum, sum of squares, and range; no score without a value."""
    row_of = np.repeat(np.arange(len(n_candidates)), n_candidates)
    statistics = {}
    for name, column in scores.items():
        there = ~np.isnan(column)
        if there.any():
            values, rows = column[there], len(np.unique(row_of[there]))
            statistics[name] = {"values": len(values), "rows": rows, "sum": float(values.sum())}
            statistics[name] |= {"sum_of_squares": float((values**2).sum())}
            statistics[name] |= {"min": float(values.min()), "max": float(values.max())}
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
