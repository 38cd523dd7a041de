"""The manifest of a labelled set, and the lines that tell a reader what was made. No time and no host is in either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline.cleaning import listed
from data_pipeline.labelling.config import UNSPLIT
from data_pipeline.labelling.job import LabelJob, settings
from data_pipeline.labelling.scoring import COMPUTED, KEPT
from data_pipeline.manifest import QUARANTINE, counts_and_totals
from data_pipeline.quality.metrics import METRICS
from data_pipeline.shard_writing import file_sha256

if TYPE_CHECKING:
    from data_pipeline.survey import Survey

RECORDS = "records"
"""The folder, beside the rows, of the quarantine and of the judge's replies: apart, so that no reader takes them for
rows."""
_WIDEST_TABLE = 9


def build_manifest(
    job: LabelJob,
    survey: Survey,
    counts: Mapping[str, Mapping[str, int]],
    pairs: Mapping[str, int],
    reports: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The manifest of the set in job.config.work/output.

    counts: by field what became of each candidate; pairs: the same for the judge's pairs; reports: what `ShardLabeller`
    returned, in order. Raises RuntimeError where rows were lost: a bug, nothing may be committed.
    """
    splits = {name: _split([each for each in reports if each["split"] == name]) for name in survey.places}
    by_split, totals = counts_and_totals(survey, splits)
    quarantine = job.config.work / "output" / RECORDS / QUARANTINE
    return {
        "key": job.key,
        "config": settings(job.config),
        "sources": [
            {"split": file.split, "file": file.name, "format": file.format, "revision": file.revision, "sha256": sha}
            for file, sha in zip(job.files, job.digests, strict=True)
        ],
        "models": {
            name: {"model": model.name, "weights": model.weights, "fingerprint": job.fingerprints[name]}
            for name, model in job.config.metric_models().items()
            if METRICS[name].needs_model
        },
        "totals": totals,
        "counts": by_split,
        "quarantine": {"file": f"{RECORDS}/{QUARANTINE}", "sha256": file_sha256(quarantine)},
        "labels": {name: _label(name, counts[name], reports) for name in counts},
        "judge": _judge(job, pairs, reports) if job.judge_folder else None,
        "splits": splits,
    }


def _split(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shards = [report["shard"] for report in reports]
    return {"rows": sum(shard["rows"] for shard in shards), "shards": shards}


def _label(name: str, counts: Mapping[str, int], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One score: what became of each candidate, and its mean over all and by model, of those that have it."""
    values: Counter[str] = Counter()
    sums: dict[str, float] = {}
    candidates: Counter[str] = Counter()
    for report in reports:
        candidates.update(report["candidates"])
        for model, (count, total) in report["values"][name].items():
            values[model] += count
            sums[model] = sums.get(model, 0.0) + total
    return {
        **{reason: counts[reason] for reason in sorted(counts)},
        "mean": sum(sums.values()) / values.total() if values else None,
        "models": {
            model: {
                "candidates": candidates[model],
                "values": values[model],
                "mean": sums[model] / values[model] if values[model] else None,
            }
            for model in sorted(candidates)
        },
    }


def _judge(job: LabelJob, pairs: Mapping[str, int], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The judge: its name for others, what became of each pair, and how often each verdict stands in the rows."""
    assert job.config.judge is not None
    verdicts: Counter[str] = Counter()
    for report in reports:
        verdicts.update(report["verdicts"])
    judge = job.config.judge
    facts = {"name": judge.name, "model": judge.model, "base_url": judge.base_url}
    return {**facts, "pairs": dict(sorted(pairs.items())), "verdicts": dict(sorted(verdicts.items()))}


def summary(manifest: Mapping[str, Any], job: LabelJob) -> list[str]:
    """What was made: counts of each label, means by model, rows kept and rejected, where it is."""
    labels, judge, totals = manifest["labels"], manifest["judge"], manifest["totals"]
    lines = [_counted(name, label) for name, label in labels.items()]
    if judge:
        lines.append(_counted("pairs by " + judge["name"], judge["pairs"]))
        lines.append("verdicts: " + (listed(judge["verdicts"]) or "none"))
    names = [name for name, label in labels.items() if label["mean"] is not None]
    for start in range(0, len(names), _WIDEST_TABLE):
        lines += _table(labels, names[start : start + _WIDEST_TABLE])
    rejected = listed(totals["rejected"])
    lines.append(f"rows: {totals['input']} read, {totals['kept']} kept, rejected: {rejected or 'none'}")
    if rejected:
        lines.append(f"rejected rows, with reasons: {job.config.folder / RECORDS / QUARANTINE}")
    return [*lines, f"labelled: {job.config.folder}"]


def _counted(name: str, counts: Mapping[str, Any]) -> str:
    """One label's counts: computed, kept as they were, and missing by reason."""
    reasons = {key: n for key, n in counts.items() if isinstance(n, int) and n and key not in (COMPUTED, KEPT)}
    told = f"{counts.get(COMPUTED, 0)} computed, {counts.get(KEPT, 0)} kept, missing: {listed(reasons) or 'none'}"
    none_at_all = "" if counts.get(COMPUTED) or counts.get(KEPT) else "; no row has it"
    return f"{name}: {told}{none_at_all}"


def _table(labels: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Means by model, a column a label."""
    models = sorted({model for name in names for model in labels[name]["models"]})
    first = max(map(len, [*models, "mean by model"]))
    widths = [max(len(name), 9) for name in names]
    header = f"{'mean by model':<{first}}  " + "  ".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True))
    lines = [header.rstrip()]
    for model in models:
        means = [labels[name]["models"].get(model, {}).get("mean") for name in names]
        cells = ["-" if mean is None else f"{mean:.4f}" for mean in means]
        lines.append(f"{model:<{first}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return lines


def next_command(manifest: Mapping[str, Any], job: LabelJob) -> str:
    """How to go on from here with the labelled set."""
    splits = [name for name, split in manifest["splits"].items() if split["rows"]]
    source = str(job.config.folder)
    if "train" not in splits and splits != [UNSPLIT]:  # a folder without a train split is one body of rows to prepare
        return "python -m data_pipeline.prepare " + " ".join(
            f"--input.{name} '{source}/{name}-*.jsonl'" for name in splits
        )
    return f"python -m data_pipeline.prepare --input {source} --output data/prepared"
