"""Labelled rows: what was read, with the new scores and verdicts put in, as JSON lines; and their statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.cleaning import Repairs, Rules, clean, parse_line
from data_pipeline.labelling.scoring import write_whole
from data_pipeline.lines import read_places
from data_pipeline.schema import Example, encodable, parse_row
from data_pipeline.shard_writing import file_sha256

Row = dict[str, Any]


@dataclass(frozen=True)
class ShardLabeller:
    """Writes shards of labelled rows. Everything else in a row stays as it was, unknown keys too."""

    paths: Sequence[str]
    """The source's files, by index."""
    rules: Rules
    fields: Sequence[str]
    """The scores to report on."""
    scores: Sequence[str]
    """Folders of the shards' new scores."""
    verdicts: str
    """Folder of the shards' new verdicts; "" = there are none."""
    output: str

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Write the shard `task`. Returns split; shard (file, rows, bytes, sha256); values: {field: {model: [n, Σ]}};
        candidates: {model: n}; verdicts: {verdict: n}."""
        lines = read_places(self.paths, task["files"], task["offsets"], task["sizes"])
        rows = [parse_line(raw) for raw in lines]
        for folder in self.scores:
            for row, update in zip(rows, _part(folder, task)["scores"], strict=True):
                add_scores(row, update)
        if self.verdicts:
            for row, found in zip(rows, _part(self.verdicts, task)["verdicts"], strict=True):
                add_verdicts(row, found)
        path = Path(self.output) / f"{task['name']}.jsonl"
        # ASCII: a lone surrogate in the source must come through, and UTF-8 cannot hold it.
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        shard = {"file": path.name, "rows": len(rows), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        return {"split": task["split"], "shard": shard, **self._statistics(rows)}

    def _statistics(self, rows: Sequence[Row]) -> dict[str, Any]:
        examples = [clean(parse_row(row), self.rules, Repairs()) for row in rows]
        values: dict[str, dict[str, list[float]]] = {field: {} for field in self.fields}
        candidates: dict[str, int] = {}
        for example in examples:
            for candidate in example.candidates:
                candidates[candidate.model] = candidates.get(candidate.model, 0) + 1
                for field in self.fields:
                    if field in candidate.scores:
                        total = values[field].setdefault(candidate.model, [0, 0.0])
                        total[0] += 1
                        total[1] += candidate.scores[field]
        return {"values": values, "candidates": candidates, "verdicts": _verdicts(examples)}


def _part(folder: str, task: Mapping[str, Any]) -> Any:
    """What a pass left for this shard."""
    return json.loads((Path(folder) / f"{task['name']}.json").read_text(encoding="utf-8"))


def _verdicts(examples: Sequence[Example]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for example in examples:
        for verdict in (example.cmp_results or {}).values():
            counts[verdict] = counts.get(verdict, 0) + 1
    return counts


def add_scores(row: Row, update: Sequence[Mapping[str, float | None]]) -> None:
    """Put new scores, one mapping a candidate, into a parsed row; None takes the old one away, the others stay."""
    for candidate, scores in zip(row["candidates"], update, strict=True):
        held, gone = candidate.get("scores") or {}, [name for name, value in scores.items() if value is None]
        changed = {name: value for name, value in {**held, **scores}.items() if name not in gone}
        if changed != held:
            candidate["scores"] = changed


def add_verdicts(row: Row, verdicts: Mapping[str, str]) -> None:
    """Put new verdicts into a parsed row's `cmp_results`, which becomes JSON text, as in MixInstruct."""
    if verdicts:
        held = parse_row(row).cmp_results or {}
        again = {frozenset(pair.split(",")) for pair in verdicts}
        kept = {pair: verdict for pair, verdict in held.items() if frozenset(pair.split(",")) not in again}
        row["cmp_results"] = encodable(json.dumps({**kept, **verdicts}, ensure_ascii=False))
