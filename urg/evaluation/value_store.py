"""Metric values that outlive a killed run: small Parquet files in the output folder, each written whole or not at all.

A value is found by its scorer and its pair of text and reference, so whatever else changes, a pair is scored once. A
scorer is a metric's name and what its values depend on: a model, a file of weights (both by content), a setting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from urg.evaluation.answer_store import content_digest
from urg.evaluation.results import write_parquet

FOLDER = "values"
Pair = tuple[str, str]  # text, reference
ScorerKey = tuple[str, ...]  # name of the metric, then what its values depend on; "" = nothing


class ValueStore:
    """The values below an output folder. fresh: nothing of an earlier run is used."""

    def __init__(self, output: Path, fresh: bool = False) -> None:
        self._folder = output / FOLDER
        self._fresh = fresh
        self._known: dict[ScorerKey, dict[bytes, dict[str, float]]] = {}

    def get(self, scorer: ScorerKey, pairs: Sequence[Pair]) -> list[dict[str, float] | None]:
        """metric → value of each pair by a scorer; None where it has not been scored."""
        if scorer not in self._known:
            self._known[scorer] = {} if self._fresh else self._read(scorer)
        known = self._known[scorer]
        return [known.get(_digest(pair)) for pair in pairs]

    def put(self, scorer: ScorerKey, pairs: Sequence[Pair], values: Mapping[str, Sequence[float]]) -> None:
        """Keep the values of new pairs. values: metric → one a pair; NaN = the pair has none."""
        import pyarrow as pa

        digests = [_digest(pair) for pair in pairs]
        table = pa.table({"pair": pa.array(digests, pa.binary()), **{m: pa.array(v) for m, v in values.items()}})
        folder = self._path(scorer)
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(folder / f"{hashlib.sha256(b''.join(digests)).hexdigest()[:16]}.parquet", table)

    def _read(self, scorer: ScorerKey) -> dict[bytes, dict[str, float]]:
        import pyarrow
        import pyarrow.parquet

        found: dict[bytes, dict[str, float]] = {}
        for part in sorted(self._path(scorer).glob("*.parquet")):
            try:
                columns = pyarrow.parquet.read_table(part).to_pydict()
                digests = columns.pop("pair")
            except (OSError, KeyError, pyarrow.ArrowException):
                continue  # damaged from outside: its pairs are scored again
            names = list(columns)
            found |= {d: dict(zip(names, v, strict=True)) for d, *v in zip(digests, *columns.values(), strict=True)}
        return found

    def _path(self, scorer: ScorerKey) -> Path:
        name, *depends = scorer
        paths = {each: Path(each).expanduser() for each in depends if each}
        identity = "\n".join(content_digest(path) if path.exists() else each for each, path in paths.items())
        return self._folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _digest(pair: Pair) -> bytes:
    text, reference = (part.encode() for part in pair)
    return hashlib.sha256(len(text).to_bytes(8, "big") + text + reference).digest()[:16]
