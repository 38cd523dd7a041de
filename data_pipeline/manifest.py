"""The manifest of a prepared set: where it came from, what was kept and rejected and why, and what its shards hold.

The same input under the same configuration gives the same manifest: no time and no host is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.cleaning import Repairs, listed, remarks_on_candidates
from data_pipeline.shard_writing import SCHEMA_VERSION, STAGED, file_sha256, merge_statistics
from data_pipeline.shards import MANIFEST, TOKENIZER
from data_pipeline.sources import shown_input
from data_pipeline.survey import UNASSIGNED, Survey
from data_pipeline.tokenization import Template, load_tokenizer, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data_pipeline.config import PrepareConfig
    from data_pipeline.conversion import InputFile

QUARANTINE = "quarantine.jsonl"
# What these lead to counts by its content (files, tokenizer), not by where it lies or how it was made.
_BY_CONTENT = ("input", "output", "tokenizer", "vocab_size", "sample")


@dataclass(frozen=True)
class Job:
    """A configuration with everything found that it names: what decides the bytes of the set.

    files: in reading order; digests: the sha256 of each one's plain lines.
    """

    config: PrepareConfig
    files: Sequence[InputFile]
    digests: Sequence[str]
    tokenizer_name: str
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @property
    def config_hash(self) -> str:
        """SHA-256 of the configuration and the version of the format, without what counts by its content."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in _BY_CONTENT}
        return _digest([SCHEMA_VERSION, settings])

    @property
    def key(self) -> str:
        """The name of the set's folder: configuration, tokenizer and content of the input."""
        sources = [(file.split, file.path.name, digest) for file, digest in zip(self.files, self.digests, strict=True)]
        return _digest([self.config_hash, self.fingerprint, sources])[:16]


def build_manifest(
    job: Job, survey: Survey, reports: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path
) -> dict[str, Any]:
    """The manifest of the set in `folder`. reports: by split what `write_shards` returned.

    Raises RuntimeError where input is not kept + rejected: rows were lost: a bug, nothing may be committed.
    """
    splits = {name: _split_entry(survey, name, reports.get(name, [])) for name in survey.places}
    counts, totals = counts_and_totals(survey, splits)
    saved = load_tokenizer(folder / TOKENIZER)
    return {
        "schema_version": SCHEMA_VERSION,
        "key": job.key,
        "config_hash": job.config_hash,
        "config": asdict(job.config) | {"input": shown_input(job.config.input)},
        "generated": survey.generated > 0,
        "sources": [_source_entry(file, digest) for file, digest in zip(job.files, job.digests, strict=True)],
        "tokenizer": {
            "name": job.tokenizer_name,
            "fingerprint": tokenizer_fingerprint(saved),
            "class": type(saved).__name__,
            "size": len(saved),
        },
        "template": asdict(Template.from_tokenizer(saved)),
        "lengths": asdict(job.config.lengths),
        "score_names": sorted(survey.score_names),
        "models": sorted({model for split in splits.values() for model in split["models"]}),
        "repairs": _repairs(job.config, [report for split in reports.values() for report in split]),
        "characters": {"rule": job.config.characters, "texts": _characters(reports)},
        "prompts": _prompts(job.config, survey),
        "totals": totals,
        "counts": counts,
        "quarantine": {"file": QUARANTINE, "sha256": file_sha256(folder / QUARANTINE)},
        "splits": splits,
    }


def counts_and_totals(survey: Survey, splits: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """input, kept and rejected by reason: of each split, and of all. splits: by name {rows: how many were written}.

    Raises RuntimeError where input is not kept + rejected, or not what the workers counted before they looked into any
    row, or where what was kept is not what was written.
    """
    counts = {name: survey.counts(name) for name in [*survey.places, UNASSIGNED] if survey.input[name]}
    totals = _totals(counts)
    _require_complete(counts, splits)
    if totals["input"] != survey.rows:
        raise RuntimeError(f"Rows were lost: {survey.rows} are in the input, {totals} came out of the survey.")
    return counts, totals


def _source_entry(file: InputFile, digest: str) -> dict[str, Any]:
    """One file of the input; bytes and sha256 are those of its plain lines."""
    entry = {"split": file.split, "file": file.name, "format": file.format}
    entry |= {"revision": file.revision} if file.revision else {}
    return entry | {"bytes": file.path.stat().st_size, "sha256": digest}


def _split_entry(survey: Survey, name: str, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One split: rows, shards, and the statistics of its rows."""
    shards = [report["shard"] for report in reports]
    statistics = merge_statistics([report["statistics"] for report in reports])
    return {"rows": sum(shard["rows"] for shard in shards), "shards": shards, **statistics}


def _totals(counts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """input, kept and rejected by reason, over all splits."""
    rejected: Counter[str] = Counter()
    for split in counts.values():
        rejected.update(split["rejected"])
    return {
        "input": sum(split["input"] for split in counts.values()),
        "kept": sum(split["kept"] for split in counts.values()),
        "rejected": dict(sorted(rejected.items())),
    }


def _require_complete(counts: Mapping[str, Mapping[str, Any]], splits: Mapping[str, Mapping[str, Any]]) -> None:
    """input = kept + rejected for every split, and what is kept is what the shards hold."""
    for name, count in counts.items():
        written = splits[name]["rows"] if name in splits else 0
        if count["input"] != count["kept"] + sum(count["rejected"].values()) or count["kept"] != written:
            raise RuntimeError(f"Rows were lost in split {name}: {count}, {written} in shards.")


def _repairs(config: PrepareConfig, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What cleaning changed and met: zeros and what is no number taken as missing, models renamed, models that come
    again in their row; candidates for each."""
    found = Repairs()
    for report in reports:
        found.zero_scores.update(report["zero_scores"])
        found.aliased.update(report["aliased"])
        found.add_unusable(report["unusable_scores"])
        found.repeated_models.update(report["repeated_models"])
    return {
        "zero_scores_taken_as_missing": dict(sorted(found.zero_scores.items())),
        "unusable_scores": {name: dict(sorted(by.items())) for name, by in sorted(found.unusable_scores.items())},
        "repeated_models": dict(sorted(found.repeated_models.items())),
        "aliased_models": {
            name: {"to": config.aliases[name], "candidates": count} for name, count in sorted(found.aliased.items())
        },
    }


def _characters(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """By kind of odd character: the texts of kept rows that had one."""
    found: Counter[str] = Counter()
    for split in reports.values():
        for report in split:
            found.update(report["characters"])
    return dict(sorted(found.items()))


def _prompts(config: PrepareConfig, survey: Survey) -> dict[str, Any]:
    """Prompts that repeat: within a split, and across splits (leaks), whose rows were kept or dropped."""
    across = {}
    for split, by_later in survey.leaks.items():
        across[split] = {name: len(rows) for name, rows in by_later.items()}
        across[split]["any"] = len({int(row) for rows in by_later.values() for row in rows})
    return {
        "leaks": across,
        "action": config.leaks,
        "near_duplicates": config.near_duplicates,
        "repeated_within": survey.repeated_prompts,
    }


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the manifest, which is the last file of a set; what killed workers left half written goes before."""
    for stray in folder.glob(f"*{STAGED}"):
        stray.unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines that tell a reader what was made."""
    lines = []
    for name, split in manifest["splits"].items():
        if not split["rows"]:
            lines.append(f"{name}: no row")
            continue
        tokens, shards = split["tokens"]["response"], len(split["shards"])
        candidates, models = split["candidates"]["total"], len(split["models"])
        lines.append(
            f"{name}: {split['rows']} rows, {candidates} candidates of {models} models, "
            f"{tokens['mean']:.0f} tokens a candidate ({tokens['truncated']} cut), {shards} shard{'s' * (shards > 1)}"
        )
    totals = manifest["totals"]
    rejected = listed(totals["rejected"])
    lines.append(f"rows: {totals['input']} read, {totals['kept']} kept, rejected: {rejected or 'none'}")
    if rejected:
        lines.append(f"rejected rows, with reasons: {folder / QUARANTINE}")
    lines += _remarks(manifest)
    if manifest["generated"]:
        lines.append("data: generated (simulated models), not the answers of real ones")
    return [*lines, f"prepared: {folder}"]


def _remarks(manifest: Mapping[str, Any]) -> list[str]:
    """What a reader should know of prompts, candidates and characters; nothing where nothing was found."""
    prompts, odd = manifest["prompts"], manifest["characters"]
    done = "dropped" if prompts["action"] == "drop" else "kept; --leaks drop takes them out"
    lines = [
        f"leaks: {count['any']} rows of {split} have a prompt of {', '.join(sorted(set(count) - {'any'}))} ({done})"
        for split, count in prompts["leaks"].items()
    ]
    identical = sum(split["identical_candidates"]["candidates"] for split in manifest["splits"].values())
    lines += [f"identical candidates: {identical}, kept and marked"] if identical else []
    lines += remarks_on_candidates(manifest["repairs"]["unusable_scores"], manifest["repairs"]["repeated_models"])
    if odd["texts"]:
        found = listed(odd["texts"]).replace("_", " ")
        done = "kept; --characters clean takes them out" if odd["rule"] == "keep" else "cleaned"
        lines.append(f"texts with odd characters: {found} ({done})")
    return lines


def _digest(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
