"""Evaluate a trained URG beside every single model, the floors and the oracle: `python -m urg.evaluate`.

Writes into the output folder

    metrics.json         {"systems": {name: {metric: mean}}, "missing": {metric, system, "system.metric": reason}, ...}
    predictions.parquet  one line a system and row: picked model, scores, text, metrics (null = no value)
    report.html          all of it to look at, in one file that needs no network

and prints the table. A metric without a value is absent from "systems" and stands in "missing"; it is never 0 or null.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from urg.config import EvaluateConfig

if TYPE_CHECKING:
    from data_pipeline.shards import ShardSet, TokenizedExample
    from urg.ensemble import Ensemble
    from urg.evaluation.comparison import Comparison
    from urg.evaluation.results import Provenance

FEW_ROWS = 100
METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE = "metrics.json", "predictions.parquet", "report.html"


def main(config: EvaluateConfig) -> None:
    """Evaluate a trained URG beside every single model, random, longest and oracle picks; write table and report."""
    evaluate(config)


def load_ensemble(config: EvaluateConfig) -> Ensemble:
    """The URG of `config.model`. UserError where the folder holds none."""
    from urg.ensemble import Ensemble

    return Ensemble.from_pretrained(str(config.model), device=config.device, batch_size=config.batch_size)


def _on_device(config: EvaluateConfig) -> EvaluateConfig:
    """The configuration with its device named: a GPU where there is one. UserError for one that is not there."""
    from urg.ensemble import resolve_device

    return replace(config, device=str(resolve_device(config.device)))


def evaluate(config: EvaluateConfig, load: Callable[[EvaluateConfig], Ensemble] = load_ensemble) -> Comparison:
    """Run the evaluation, write its three files, print its table. load: makes the ensemble where a model is named."""
    from data_pipeline.shards import ShardSet
    from urg.evaluation.results import Provenance

    output = _writable(Path(config.output).expanduser().absolute())
    config = _on_device(config)
    shards = ShardSet.open(config.shards)
    model = model_facts(config.model)
    rows, label = _rows(shards, config), _label(shards, config, model)
    comparison = _compare(rows, label, config, load)
    data = _data_facts(shards, config.split, rows, label)
    provenance = Provenance(data, model, asdict(config), notes(data, model))
    _write(output, comparison, provenance, config)
    _show(output, comparison, provenance, config)
    _track(output, comparison, config)
    return comparison


def _compare(
    rows: Sequence[TokenizedExample], label: str, config: EvaluateConfig, load: Callable[[EvaluateConfig], Ensemble]
) -> Comparison:
    """Run every system. What may be wrong with encoder or model shows before anything slow begins."""
    from urg.evaluation.comparison import compare
    from urg.evaluation.text_metrics import TextMetrics
    from urg.systems import Setup, build_systems

    progress = Progress()
    text_metrics = TextMetrics(config.bertscore_model, str(config.device), progress)
    setup = Setup(
        label=label,
        models=tuple(sorted({name for row in rows for name in row.models})),
        seed=config.seed,
        ensemble=None if config.model is None else load(config),
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        progress=progress,
    )
    systems, unavailable = build_systems(setup)
    return compare(rows, label, systems, text_metrics, unavailable)


def _writable(folder: Path) -> Path:
    """The folder, made if absent and tried out: better now than after the generation."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{os.getpid()}.trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror}); choose another folder by --output") from error
    return folder


def model_facts(folder: str | None) -> dict[str, Any]:
    """What urg.json says of a model: folder, label, training steps, whether it is trained. Empty without a model."""
    if folder is None:
        return {}
    path = Path(folder).expanduser().absolute()
    if not (path / "urg.json").is_file():
        raise UserError(f"{path} is no URG model (no urg.json): name the model folder of a training run by --model")
    try:
        settings = json.loads((path / "urg.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path / 'urg.json'} is no JSON ({error}); export the model again") from error
    steps = int(settings.get("steps") or 0)
    generated = bool(settings.get("generated_data"))
    facts = {"folder": str(path), "label": settings.get("label"), "k": settings.get("k"), "steps": steps}
    return facts | {"trained": steps > 0, "generated_data": generated}


def _rows(shards: ShardSet, config: EvaluateConfig) -> list[TokenizedExample]:
    """The rows to evaluate. UserError where an id stands twice, for predictions are kept by id."""
    split = shards.split(config.split)
    rows = [split[index] for index in range(min(len(split), config.rows or len(split)))]
    if not rows:
        raise UserError(f"split {config.split} of {shards.folder} has no rows; choose another by --split")
    twice = [row_id for row_id, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise UserError(
            f"split {config.split} has {len(twice)} ids more than once, such as {twice[0]}; prepare it again"
        )
    return rows


def _label(shards: ShardSet, config: EvaluateConfig, model: dict[str, Any]) -> str:
    """The label's name. UserError, with the names there are, where none is named or no row has it."""
    label = config.label or model.get("label")
    if not label:
        names = ", ".join(shards.score_names) or "no score at all"
        raise UserError(f"no label is named and the model names none; the data have {names}: choose one by --label")
    shards.split(config.split).has_label(label)
    return str(label)


def _data_facts(shards: ShardSet, split: str, rows: Sequence[TokenizedExample], label: str) -> dict[str, Any]:
    labelled = sum(bool((row.scores[label] == row.scores[label]).any()) for row in rows)
    sizes = [len(row.texts) for row in rows]
    return {
        "shards": str(shards.folder),
        "data_key": shards.manifest.get("key"),
        "split": split,
        "label": label,
        "rows": len(rows),
        "rows_with_label": labelled,
        "rows_with_reference": sum(bool(row.output.strip()) for row in rows),
        "candidates_per_row": {"min": min(sizes), "mean": sum(sizes) / len(sizes), "max": max(sizes)},
        "generated": bool(shards.manifest.get("generated")) or all(row.id.startswith("generated/") for row in rows),
    }


def notes(data: dict[str, Any], model: dict[str, Any]) -> tuple[str, ...]:
    """What a reader must know before believing a figure."""
    found = []
    if data["generated"]:
        found.append("The data are generated and their models simulated: no figure here says anything of real models.")
    if data["rows"] < FEW_ROWS:
        found.append(f"Only {data['rows']} rows: most differences between systems are chance.")
    if model and not model["trained"]:
        found.append("The URG model is untrained (0 steps): its rows show what random weights do.")
    if model and model["label"] not in (None, data["label"]):
        found.append(f"URG was trained to rank by {model['label']}, and is judged here by {data['label']}.")
    if data["rows_with_label"] < data["rows"]:
        unlabelled = data["rows"] - data["rows_with_label"]
        found.append(f"{unlabelled} rows have no {data['label']}: no label, no rank metrics.")
    if 0 < data["rows_with_reference"] < data["rows"]:
        found.append(f"{data['rows'] - data['rows_with_reference']} rows have no reference: no text metrics.")
    return tuple(found)


def _write(output: Path, comparison: Comparison, provenance: Provenance, config: EvaluateConfig) -> None:
    from urg.evaluation.report import report_page
    from urg.evaluation.results import metrics_document, predictions_table, write_json, write_parquet, write_text

    write_json(output / METRICS_FILE, metrics_document(comparison, provenance))
    write_parquet(output / PREDICTIONS_FILE, predictions_table(comparison))
    write_text(output / REPORT_FILE, report_page(comparison, provenance, config.cases))


def _show(output: Path, comparison: Comparison, provenance: Provenance, config: EvaluateConfig) -> None:
    """The table, its notes, the gap closed, where the files are, and what to do next."""
    from urg.evaluation.comparison import gaps
    from urg.evaluation.table import gap_sentence, print_table

    print()
    print_table(comparison, provenance.title)
    for reason, names in comparison.missing_by_reason().items():
        print(f"missing: {', '.join(names)} ({reason})")
    for note in provenance.notes:
        print(f"note: {note}")
    for gap in [gap for gap in gaps(comparison) if gap.metric in ("label", "rougeL")]:
        print(gap_sentence(gap, comparison))
    print(f"\nresults   {output / METRICS_FILE}\n          {output / PREDICTIONS_FILE}")
    print(f"report    file://{output / REPORT_FILE}   (open it in a browser; it needs no network)")
    if config.model is not None:
        print(f"next      python -m urg.ensemble --model {config.model} --input rows.jsonl --output fused.jsonl")


def _track(output: Path, comparison: Comparison, config: EvaluateConfig) -> None:
    """Add the means, table and report to the MLflow run that trained the model, where there is one."""
    from urg.evaluation.track import add_to_training_run

    if config.model is None or not config.track:
        return
    files = [output / METRICS_FILE, output / REPORT_FILE]
    try:
        run_id = add_to_training_run(Path(config.model), config.split, comparison, files)
    except UserError as error:
        print(f"note: not added to MLflow: {error}")
        return
    if run_id:
        print(f"MLflow    added to run {run_id}; see it with: make ui")


class Progress:
    """Shows on stderr how far a slow part is: rewriting one line on a terminal, elsewhere a line for each quarter."""

    def __init__(self) -> None:
        self._quarter = (-1, "")

    def __call__(self, what: str, done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done} of {of}", end="\n" if done >= of else "", file=sys.stderr, flush=True)
            return
        quarter = (4 * done // max(of, 1), what)
        if quarter != self._quarter:
            self._quarter = quarter
            print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, EvaluateConfig)
