"""What an evaluation leaves behind: metrics.json and predictions.parquet, each written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urg.evaluation.comparison import METRICS, Comparison, Result, gaps
from urg.evaluation.rank_metrics import NO_NUMBER

if TYPE_CHECKING:
    import pyarrow

    from urg.evaluation.sheet import Sheet
    from urg.evaluation.statistics import Statistics

FORMAT = 1


@dataclass(frozen=True)
class Provenance:
    """What was compared, as shown in the table's title, metrics.json and the report."""

    data: dict[str, Any]
    """split, label, rows, generated, …"""
    model: dict[str, Any]
    """folder, trained, steps, …; empty where no model was given."""
    settings: dict[str, Any]
    """The resolved configuration."""
    notes: tuple[str, ...]
    """What a reader must know before believing a figure."""

    @property
    def warnings(self) -> list[str]:
        """In capitals, what makes the figures no real ones."""
        untrained = bool(self.model) and not self.model["trained"]
        flags = {"GENERATED DATA": self.data["generated"], "UNTRAINED MODEL": untrained}
        return [text for text, holds in flags.items() if holds]

    @property
    def title(self) -> str:
        """One line: split, rows, label, warnings."""
        parts = [f"{self.data['split']} split", f"{self.data['rows']} rows", f"label {self.data['label']}"]
        return ", ".join(parts) + "".join(f" — {warning}" for warning in self.warnings)

    def with_notes(self, comparison: Comparison) -> Provenance:
        """With what is to be said of the judge's verdicts, and of rows that a system did not answer or rank, added to
        the notes."""
        judged, rows = comparison.judged, len(comparison.rows)
        found = [f"{count} verdicts of cmp_results left out: {reason}." for reason, count in judged.ignored.items()]
        if 0 < judged.count < len(judged.rows):
            found.append(f"{len(judged.rows) - judged.count} rows have no verdicts: none of the judge's metrics.")
        for result in comparison.results:
            if result.kind in ("ranker", "fuser") and 0 < result.rows < rows:
                found.append(f"{result.name} answered {result.rows} of {rows} rows; its means are over these.")
            if unranked := result.left_out.get("ndcg", {}).get(NO_NUMBER):
                found.append(f"{result.name} gave {unranked} rows scores that are no numbers: no rank metrics there.")
        return replace(self, notes=(*self.notes, *found))


def metrics_document(comparison: Comparison, provenance: Provenance, stats: Statistics | None = None) -> dict[str, Any]:
    """metrics.json. A metric without a value is absent from "systems" and stands in "missing" with its reason."""
    missing = dict(comparison.missing)
    for result in comparison.results:
        own = {metric: reason for metric, reason in result.missing.items() if metric not in comparison.missing}
        missing |= {f"{result.name}.{metric}": reason for metric, reason in own.items()}
    return {
        "format": FORMAT,
        "title": provenance.title,
        "notes": list(provenance.notes),
        "systems": {result.name: result.means for result in comparison.results},
        "missing": missing,
        "kinds": {result.name: result.kind for result in comparison.results},
        "counts": {result.name: {"rows": result.rows, **result.counts} for result in comparison.results},
        "left_out": {result.name: result.left_out for result in comparison.results if any(result.left_out.values())},
        "gaps": {gap.metric: asdict(gap) for gap in gaps(comparison)},
        "data": provenance.data,
        "model": provenance.model,
        "settings": provenance.settings,
        "metrics": _described(comparison, provenance),
        "judge": {"rows_with_verdicts": comparison.judged.count, "verdicts_left_out": comparison.judged.ignored},
        **({} if stats is None else _statistics(stats)),
    }


def _statistics(stats: Statistics) -> dict[str, Any]:
    tests = {metric: [asdict(test) for test in tests] for metric, tests in stats.tests.items()}
    return {"intervals": stats.intervals, "tests": tests, "statistics": stats.method}


def _described(comparison: Comparison, provenance: Provenance) -> dict[str, str]:
    """How each metric was computed, where there is a choice."""
    described = {
        "label": f"mean {comparison.label} of what was picked, over the rows where the pick has one",
        "hit@1": "share of rows where the top-scored labelled candidate has the best label",
        "ndcg": "gain = label − the row's smallest label (linear), discount 1/log2(1 + rank), all candidates",
        "kendall": "tau-b",
        "rouge": "F1 0..1, rouge_score with stemmer; Lsum by sentences",
        "bleu": "mean sentence BLEU, 0..100, sacrebleu",
    }
    if comparison.judged.count:
        described["gpt_rank"] = comparison.judged.rule
    if comparison.bleu_signature:
        described["corpus_bleu"] = comparison.bleu_signature
    return described | _described_models(provenance.settings)


def _described_models(settings: dict[str, Any]) -> dict[str, str]:
    """The same of the metrics that have a model."""
    described = {}
    if model := settings.get("bartscore_model"):
        weights = settings.get("bartscore_weights")
        described["bartscore"] = f"model {model}" + (f" with the weights {weights}" if weights else "")
    if model := settings.get("bleurt_model"):
        tokens = settings.get("bleurt_tokens")
        described["bleurt"] = f"model {model}, reference and text cut at {tokens} tokens, or where the model's limit is"
    if encoder := settings.get("bertscore_model"):
        from data_pipeline.quality.bertscore import describe

        described["bertscore"] = describe(encoder)
    return described


def predictions_table(comparison: Comparison) -> pyarrow.Table:
    """One line a system and answered row. models, scores: lists in the row's order; used: the places of the candidates
    that were fused; null where there is no value."""
    import pyarrow as pa

    fields = [
        ("id", pa.string()), ("system", pa.string()), ("picked_model", pa.string()), ("picked", pa.int32()),
        ("models", pa.list_(pa.string())), ("scores", pa.list_(pa.float64())), ("used", pa.list_(pa.int32())),
        ("text", pa.string()),
        *((metric, pa.float64()) for metric in METRICS),
    ]  # fmt: skip
    lines = [line for result in comparison.results for line in _lines(comparison, result)]
    return pa.Table.from_pylist(lines, schema=pa.schema(fields))


def _lines(comparison: Comparison, result: Result) -> list[dict[str, Any]]:
    lines = []
    for index, (row, answer) in enumerate(zip(comparison.rows, result.answers, strict=True)):
        if answer is None:
            continue
        values = {metric: _number(column[index]) for metric, column in result.values.items()}
        scores = None if answer.scores is None else [_number(score) for score in answer.scores]
        picked = None if answer.picked is None else row.models[answer.picked]
        line: dict[str, Any] = {"id": row.id, "system": result.name, "picked_model": picked, "picked": answer.picked}
        line |= {"models": list(row.models), "scores": scores, "used": [int(i) for i in answer.used]}
        lines.append(line | {"text": answer.text} | values)
    return lines


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """JSON with sorted-as-given keys; a NaN is a bug and raises ValueError."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sheets(path: Path, sheets: Sequence[Sheet]) -> None:
    """The tables as `path`.md and `path`.tex."""
    from urg.evaluation.sheet import latex, markdown

    write_text(path.with_suffix(".md"), "\n".join(map(markdown, sheets)))
    write_text(path.with_suffix(".tex"), "\n".join(map(latex, sheets)))


def write_text(path: Path, text: str) -> None:
    """Text as UTF-8."""
    _replace(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def write_parquet(path: Path, table: pyarrow.Table) -> None:
    """A table as one Parquet file."""
    import pyarrow.parquet

    _replace(path, lambda staged: pyarrow.parquet.write_table(table, staged, compression="zstd"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file, then put it in place: a reader never meets half of one."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
