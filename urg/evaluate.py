"""Evaluate a trained URG beside every other system: `python -m urg.evaluate --systems all`.

Writes into the output folder

    metrics.json         {"systems": {name: {metric: mean}}, "missing": {metric, system, "system.metric": reason},
                         "intervals", "tests", ...}
    predictions.parquet  one line a system and row: picked model, scores, text, metrics (null = no value)
    report.html          all of it to look at, in one file that needs no network
    tables.md .tex .json all systems, Table 2 of the URG paper and LLM-Blender's table beside what they published
    answers/, values/    what each system answered, what each text scored: the same command again takes them from there

and prints the table. A metric without a value is absent from "systems" and stands in "missing"; it is never 0 or null.
`--experiment noise|human|cases` runs an experiment of the paper instead, `--list` prints what there is as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from urg.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from urg.evaluation.answering import Load
    from urg.evaluation.comparison import Comparison
    from urg.evaluation.results import Provenance
    from urg.evaluation.statistics import Statistics
    from urg.evaluation.subject import Subject

METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE = "metrics.json", "predictions.parquet", "report.html"


def main(config: EvaluateConfig) -> None:
    """Evaluate a trained URG beside every single model and system, or run an experiment of the paper."""
    if config.list:
        from urg.evaluation.listing import listing

        print(json.dumps(listing(), indent=2))
    elif config.experiment == "noise":
        from urg.evaluation.noise import run_noise

        run_noise(config, writable(config))
    elif config.experiment == "human":
        from urg.evaluation.human import run_human

        run_human(config, writable(config))
    elif config.experiment == "cases":
        from urg.evaluation.cases import run_cases

        run_cases(config, writable(config))
    else:
        evaluate(config)


def evaluate(config: EvaluateConfig, load: Load | None = None) -> Comparison:
    """Run the evaluation, write its files, print its table. load: makes the ensemble where a model is named."""
    from urg.evaluation.statistics import statistics
    from urg.evaluation.subject import open_subject

    output = writable(config)
    subject = open_subject(config)
    comparison = compare_systems(subject, output, load)
    provenance = subject.provenance.with_notes(comparison)
    stats = statistics(comparison, config.statistics, config.seed)
    _write(output, comparison, provenance, stats, config)
    _show(output, comparison, provenance, stats, config)
    _track(output, subject, comparison, provenance)
    return comparison


def compare_systems(subject: Subject, output: Path, load: Load | None) -> Comparison:
    """Run every asked system and score its answers. A metric's model that cannot load shows before anything slow."""
    from urg.evaluation.answer_store import AnswerStore
    from urg.evaluation.answering import answer, asks_oracles, load_ensemble
    from urg.evaluation.comparison import compare
    from urg.evaluation.progress import Progress
    from urg.evaluation.text_metrics import TextMetrics

    config, rows, label, progress = subject.config, subject.rows, subject.label, Progress()
    text_metrics = TextMetrics.of(config, output, progress)
    store = AnswerStore(output, config, rows, label)
    systems, unavailable = answer(rows, label, config, store, load or load_ensemble, progress, subject.ids)
    ceilings = asks_oracles(config.systems)
    if not systems and not ceilings:
        raise UserError("; ".join(f"{name} cannot run: {reason}" for name, reason in unavailable.items()))
    return compare(rows, label, systems, text_metrics, unavailable, config.judge, ceilings)


def writable(config: EvaluateConfig) -> Path:
    """The output folder, made if absent and tried out: better now than after the generation."""
    from data_pipeline.commit import require_lasting

    folder = Path(config.output).expanduser().absolute()
    require_lasting(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{os.getpid()}.trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder} ({error.strerror}); choose another folder by --output") from error
    return folder


def _write(
    output: Path, comparison: Comparison, provenance: Provenance, stats: Statistics, config: EvaluateConfig
) -> None:
    from urg.evaluation.paper_tables import sheets
    from urg.evaluation.report import report_page
    from urg.evaluation.results import (
        metrics_document,
        predictions_table,
        write_json,
        write_parquet,
        write_sheets,
        write_text,
    )
    from urg.evaluation.sheet import as_json

    write_json(output / METRICS_FILE, metrics_document(comparison, provenance, stats))
    write_parquet(output / PREDICTIONS_FILE, predictions_table(comparison))
    tables = sheets(comparison, provenance, stats)
    write_sheets(output / "tables", tables)
    write_json(output / "tables.json", {"tables": [as_json(table) for table in tables]})
    write_text(output / REPORT_FILE, report_page(comparison, provenance, config.cases, stats))


def _show(
    output: Path, comparison: Comparison, provenance: Provenance, stats: Statistics, config: EvaluateConfig
) -> None:
    """The table, its notes, the gap closed, where the files are, and what to do next."""
    from urg.evaluation.comparison import gaps
    from urg.evaluation.paper_tables import is_mixinstruct, poster, table2
    from urg.evaluation.sheet import plain
    from urg.evaluation.statistics import sentences
    from urg.evaluation.table import gap_sentence, print_table

    print()
    print_table(comparison, provenance.title)
    for reason, names in comparison.missing_by_reason().items():
        print(f"missing: {', '.join(names)} ({reason})")
    for note in provenance.notes:
        print(f"note: {note}")
    for gap in [gap for gap in gaps(comparison) if gap.metric in ("label", "rougeL")]:
        print(gap_sentence(gap, comparison))
    for sentence in sentences(comparison, stats):
        print(sentence)
    if is_mixinstruct(comparison):
        where, parameters = provenance.title, provenance.model.get("parameters")
        for sheet in (table2(comparison, where, parameters=parameters), poster(comparison, where)):
            print(f"\n{plain(sheet)}")
    print(f"\nresults   {output / METRICS_FILE}\n          {output / PREDICTIONS_FILE}")
    print(f"tables    {output / 'tables.md'}, .tex, .json: with intervals, tests and published figures")
    print(f"report    file://{output / REPORT_FILE}   (open it in a browser; it needs no network)")
    if config.model is not None and config.folds is None:
        print(f"next      python -m urg.ensemble --model {config.model} --input rows.jsonl --output fused.jsonl")


def _track(output: Path, subject: Subject, comparison: Comparison, provenance: Provenance) -> None:
    """Add the results to MLflow: to the run that trained the model, and as runs of their own."""
    from urg.evaluation.answer_store import AnswerStore
    from urg.evaluation.track import add_to_training_run, log_systems

    config = subject.config
    if not config.track or config.tracking.uri == "off":
        return
    files = [output / METRICS_FILE, output / REPORT_FILE]
    parts = [AnswerStore(output, part, subject.rows, subject.label).key_of_all() for part in config.parts]
    key = hashlib.sha256("".join(parts).encode()).hexdigest()
    try:
        one_model = config.model is not None and len(parts) == 1
        run_id = add_to_training_run(Path(str(config.model)), config.split, comparison, files) if one_model else None
        parent = log_systems(config, comparison, provenance, key)
    except UserError as error:
        print(f"note: not added to MLflow: {error}")
        return
    if parent is None:
        print("note: not added to MLflow: no tracked run of the model's training is at hand; see --tracking.uri")
    else:
        added = f"added to run {run_id}; " if run_id else ""
        print(f"MLflow    {added}a run a system below {parent}; see them with: make ui")


if __name__ == "__main__":
    run_command(main, EvaluateConfig)
