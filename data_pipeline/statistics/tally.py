"""Counting rows in one pass, in memory that texts do not fill: counters, sums, and 16 bytes of each row."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.cleaning import id_digest
from data_pipeline.leaks import Prompts, find_leaks, normalized_prompt, prompt_digest
from data_pipeline.schema import Example
from data_pipeline.shard_writing import distribution
from data_pipeline.statistics.scores import ScoreTally
from data_pipeline.tokenization import question_text

KINDS = ("question", "candidate", "reference")
_MOST_SOURCES = 200
OTHER_SOURCES = "(other)"
NO_SOURCE = "(no prefix)"
_BATCH = 512
_CURVE_POINTS = 60

Measure = Callable[[Sequence[str]], list[int]]
"""Lengths of texts, in the unit that is counted."""


@dataclass
class SplitTally:
    """One split: rows, and what they hold."""

    rows: int = 0
    candidates: Counter[int] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    identical_rows: int = 0
    identical_candidates: int = 0
    empty_candidates: int = 0
    without_reference: int = 0
    ids: array[int] = field(default_factory=lambda: array("Q"))
    prompts: Prompts = field(default_factory=Prompts)
    scores: ScoreTally = field(default_factory=ScoreTally)


class Tally:
    """All that is counted of a set; fill it with `add_all`, then ask for `document`."""

    def __init__(self, measure: Measure, log_scale_scores: Iterable[str]) -> None:
        self.splits: dict[str, SplitTally] = {}
        self.sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._measure = measure
        self._log_scale = frozenset(log_scale_scores)

    def add_all(self, rows: Iterable[tuple[str, Example]]) -> None:
        """Count (split, row) after (split, row), some hundred at a time."""
        batch: list[tuple[str, Example]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                self._add(batch)
                batch = []
        self._add(batch)

    def _add(self, batch: Sequence[tuple[str, Example]]) -> None:
        for split in dict.fromkeys(split for split, _ in batch):
            rows = [example for name, example in batch if name == split]
            tally = self.splits.setdefault(split, SplitTally())
            lengths = self._lengths(rows)
            for example, own in zip(rows, lengths, strict=True):
                self._add_row(split, tally, example, own)
            tally.scores.add(rows, self._log_scale)

    def _lengths(self, rows: Sequence[Example]) -> list[dict[str, list[int]]]:
        """By row, by kind, the lengths of its texts; none for a reference that is not there."""
        texts = [_texts(row) for row in rows]
        measured = iter(self._measure([text for row in texts for kind in KINDS for text in row[kind]]))
        return [{kind: [next(measured) for _ in row[kind]] for kind in KINDS} for row in texts]

    def _add_row(self, split: str, tally: SplitTally, example: Example, lengths: Mapping[str, list[int]]) -> None:
        answers = [candidate.text for candidate in example.candidates]
        repeated = len(answers) - len(set(answers))
        tally.rows += 1
        tally.candidates[len(answers)] += 1
        tally.identical_rows += bool(repeated)
        tally.identical_candidates += repeated
        tally.empty_candidates += sum(not text.strip() for text in answers)
        tally.without_reference += not example.output
        tally.ids.append(int.from_bytes(id_digest(example.id)[:8], "big"))
        tally.prompts.digests.append(prompt_digest(normalized_prompt(example)))
        for kind, values in lengths.items():
            tally.lengths[kind].update(values)
        self._add_source(split, example.id, lengths)

    def _add_source(self, split: str, row_id: str, lengths: Mapping[str, list[int]]) -> None:
        name = row_id.split("/", 1)[0] if "/" in row_id else NO_SOURCE
        if name not in self.sources and len(self.sources) >= _MOST_SOURCES:
            name = OTHER_SOURCES
        own = self.sources[name]
        own[f"rows:{split}"] += 1
        own["rows"] += 1
        for kind, values in lengths.items():
            own[f"{kind}:texts"] += len(values)
            own[f"{kind}:length"] += sum(values)

    def document(self, limits: Mapping[str, int] | None) -> dict[str, Any]:
        """Everything as JSON values. limits: by kind the longest that is kept whole; None where words were counted."""
        return {
            "rows": sum(split.rows for split in self.splits.values()),
            "splits": {name: _split_document(split, limits) for name, split in self.splits.items()},
            "sources": {name: _source_document(own) for name, own in sorted(self.sources.items())},
            "duplicates": self._duplicates(),
        }

    def _duplicates(self) -> dict[str, Any]:
        """Ids that occur again anywhere, and prompts within a split and across splits."""
        ids = np.concatenate([np.frombuffer(split.ids, dtype=np.uint64) for split in self.splits.values()])
        prompts = {name: split.prompts for name, split in self.splits.items()}
        leaks = find_leaks(prompts, None, lambda split, row: "")
        return {
            "ids": len(ids) - len(np.unique(ids)),
            "prompts_within": {name: each.repeated() for name, each in prompts.items()},
            "leaks": {name: {later: len(rows) for later, rows in by.items()} for name, by in leaks.items()},
        }


def _texts(row: Example) -> dict[str, list[str]]:
    return {
        "question": [question_text(row.instruction, row.input)],
        "candidate": [candidate.text for candidate in row.candidates],
        "reference": [row.output] if row.output else [],
    }


def _split_document(split: SplitTally, limits: Mapping[str, int] | None) -> dict[str, Any]:
    return {
        "rows": split.rows,
        "candidates": distribution(split.candidates),
        "lengths": {kind: distribution(split.lengths[kind]) for kind in KINDS},
        "length_quantiles": {kind: _quantiles(split.lengths[kind]) for kind in KINDS},
        "truncated": None if limits is None else {kind: _over(split.lengths[kind], limits[kind]) for kind in KINDS},
        "identical_candidates": {"rows": split.identical_rows, "candidates": split.identical_candidates},
        "empty_candidates": split.empty_candidates,
        "rows_without_reference": split.without_reference,
        **split.scores.document(),
    }


def _quantiles(lengths: Counter[int]) -> dict[str, list[float]] | None:
    """Points of the curve "share of texts no longer than": lengths, and shares 0..1; None where there is no text."""
    if not lengths:
        return None
    values = sorted(lengths)
    shares = np.cumsum([lengths[value] for value in values]) / sum(lengths.values())
    picked = np.unique([*np.searchsorted(shares, np.linspace(0, 1, _CURVE_POINTS)[:-1]).tolist(), len(values) - 1])
    return {"lengths": [values[i] for i in picked], "shares": [round(float(shares[i]), 4) for i in picked]}


def _over(lengths: Counter[int], limit: int) -> dict[str, Any]:
    cut = sum(count for length, count in lengths.items() if length > limit)
    return {"limit": limit, "texts": cut, "share": cut / max(1, sum(lengths.values()))}


def _source_document(own: Mapping[str, int]) -> dict[str, Any]:
    rows = {name.removeprefix("rows:"): count for name, count in own.items() if name.startswith("rows:")}
    means = {kind: own[f"{kind}:length"] / own[f"{kind}:texts"] if own[f"{kind}:texts"] else None for kind in KINDS}
    return {"rows": own["rows"], "rows_by_split": rows, "mean_length": means}
