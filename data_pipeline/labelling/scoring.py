"""The scores of one shard of rows, on an actor: which candidates want them, what cannot have one and why."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.cleaning import Rules, clean_line
from data_pipeline.errors import UserError, first_line
from data_pipeline.lines import read_places
from data_pipeline.quality.metrics import METRICS, Item, Metric, Scorer
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.schema import Candidate, Example
from data_pipeline.shard_writing import STAGED
from data_pipeline.tokenization import question_text

# What becomes of a candidate's score, counted for each field.
COMPUTED, KEPT = "computed", "kept"
NO_REFERENCE, EMPTY_TEXT, NOT_DEFINED = "no_reference", "empty_text", "not_defined"

GOES_ON = "finished shards are kept, and the same command goes on from there"

Updates = list[list[dict[str, float | None]]]  # row → candidate → field → new score; None = the old one is to go
Counts = dict[str, Counter[str]]


def read_examples(paths: Sequence[str], task: Mapping[str, Any], rules: Rules) -> list[Example]:
    """The rows of one shard. task: files, offsets, sizes: their places."""
    return [clean_line(raw, rules) for raw in read_places(paths, task["files"], task["offsets"], task["sizes"])]


@dataclass
class ShardScorer:
    """Scores shards; its models are loaded when the first candidate needs them, and stay with it."""

    paths: Sequence[str]
    """The source's files, by index."""
    rules: Rules
    fields: Mapping[str, Sequence[str]]
    """metric → the scores asked of it."""
    models: Mapping[str, MetricModel]
    overwrite: bool
    folder: str
    """Where each shard's scores go, as <shard>.json: {scores, counts}."""
    loaded: dict[str, Scorer] = field(default_factory=dict)

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Score the shard `task` (name; files, offsets, sizes of its rows). Returns name, rows, counts.

        Raises `UserError` where a metric fails on it.
        """
        examples = read_examples(self.paths, task, self.rules)
        stale = [each for fields in self.fields.values() for each in fields] if self.overwrite else []
        updates: Updates = [[dict.fromkeys(stale) for _ in example.candidates] for example in examples]
        counts: Counts = {}
        for name, fields in self.fields.items():
            counts |= self._score(name, fields, task["name"], examples, updates)
        write_whole(Path(self.folder) / f"{task['name']}.json", json.dumps({"scores": updates, "counts": counts}))
        return {"name": task["name"], "rows": len(examples), "counts": counts}

    def _score(
        self, name: str, fields: Sequence[str], shard: str, examples: Sequence[Example], updates: Updates
    ) -> Counts:
        """Put one metric's scores into `updates`; what became of each candidate, by field."""
        metric, counts = METRICS[name], {each: Counter({COMPUTED: 0, KEPT: 0}) for each in fields}
        wanted: dict[Item, list[tuple[int, int, list[str]]]] = {}
        for row, example in enumerate(examples):
            prompt = question_text(example.instruction, example.input)
            for column, candidate in enumerate(example.candidates):
                lacking = [each for each in fields if self.overwrite or each not in candidate.scores]
                for each in fields:
                    counts[each][KEPT] += each not in lacking
                reason = _obstacle(metric, example, candidate)
                if lacking and reason:
                    for each in lacking:
                        counts[each][reason] += 1
                elif lacking:
                    item = Item(prompt, candidate.text, example.output if metric.needs_reference else "")
                    wanted.setdefault(item, []).append((row, column, lacking))
        with _told(name, shard):
            scores = self._scorer(name)(list(wanted)) if wanted else {}
        for index, places in enumerate(wanted.values()):
            for row, column, lacking in places:
                for each in lacking:
                    value = float(scores[each][index])
                    counts[each][COMPUTED if math.isfinite(value) else NOT_DEFINED] += 1
                    if math.isfinite(value):
                        updates[row][column][each] = value
        return counts

    def _scorer(self, name: str) -> Scorer:
        if name not in self.loaded:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            self.loaded[name] = METRICS[name].load(self.models[name])
        return self.loaded[name]


@contextmanager
def _told(metric: str, shard: str) -> Iterator[None]:
    """Turn what a metric's model raises into a `UserError`: memory that ends, a tokenizer of another model, …"""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UserError(
            f"{metric} fails on shard {shard} ({problem}); lower batch_tokens where memory ends, or name a model whose "
            f"tokenizer and weights belong together: {GOES_ON}."
        ) from error


def _obstacle(metric: Metric, example: Example, candidate: Candidate) -> str:
    """Why the candidate cannot have the metric; "" where it can."""
    if metric.needs_reference and not example.output.strip():
        return NO_REFERENCE
    return "" if candidate.text.strip() else EMPTY_TEXT


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    staged = path.with_name(f"{path.name}.{os.getpid()}{STAGED}")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, path)
