"""What a collection leaves behind: the rows, the rejected ones with reasons, and the manifest with every count."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from data_pipeline.collection.asking import Asked
from data_pipeline.collection.prompts import Prompt, Prompts
from data_pipeline.commit import writing
from data_pipeline.errors import RowError, UserError
from data_pipeline.schema import encodable
from data_pipeline.shard_writing import file_sha256

ROWS, QUARANTINE, MANIFEST = "rows.jsonl", "records/quarantine.jsonl", "manifest.json"
"""Below the output; rejected rows in a folder of their own, so that who reads the output takes them for no rows."""
_FORMAT = 1


class Quarantine:
    """The file of rejected rows in `folder`, a JSON object each: file (`path`), line (from 1), reason, message, raw."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._path = path
        with writing(folder):
            (folder / QUARANTINE).parent.mkdir()
            self._file = (folder / QUARANTINE).open("w", encoding="utf-8")

    def reject(self, line: int, error: RowError, raw: bytes) -> None:
        """Write down one row."""
        record = {"file": str(self._path), "line": line, "reason": error.reason, "message": str(error)}
        with writing(Path(self._file.name).parent):
            self._file.write(json.dumps(record | {"raw": raw.decode("utf-8", "replace")}) + "\n")

    def close(self) -> None:
        """Finish the file."""
        with writing(Path(self._file.name).parent):
            self._file.close()


def write_results(
    prompts: Prompts, asked: Sequence[Asked], quarantine: Quarantine, staged: Path, root: Path
) -> dict[str, Any]:
    """Write rows, quarantine and manifest into `staged`, put them into their places in `root`; the manifest."""
    with writing(root):
        with (staged / ROWS).open("w", encoding="utf-8") as rows:
            kept = _write_rows(rows, prompts, asked, quarantine)
        quarantine.close()
        manifest = build_manifest(prompts, asked, kept, staged)
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (staged / MANIFEST).write_text(encodable(text) + "\n", encoding="utf-8")
        (root / QUARANTINE).parent.mkdir(exist_ok=True)
        for name in (ROWS, QUARANTINE, MANIFEST):
            _put(staged / name, root / name)
    return manifest


def _write_rows(file: IO[str], prompts: Prompts, asked: Sequence[Asked], quarantine: Quarantine) -> int:
    """Write each prompt with the candidates that it has, in the order of the file and of the models; how many.

    A prompt that nobody answered is no row: it is counted as rejected, no_candidates.
    """
    kept = 0
    for row, prompt in enumerate(prompts.read(range(len(prompts)))):
        record = _row(row, prompt, asked)
        if record["candidates"]:
            file.write(encodable(json.dumps(record, ensure_ascii=False)) + "\n")
            kept += 1
        else:
            error = RowError("no_candidates", "no model has answered; run the same command again to ask again")
            prompts.rejected[error.reason] += 1
            quarantine.reject(prompts.lines[row], error, json.dumps(prompt.record).encode())
    return kept


def _row(row: int, prompt: Prompt, asked: Sequence[Asked]) -> dict[str, Any]:
    """The prompt's JSON object as it came, with a candidate more for each model that answered."""
    new = [
        {
            "decoding_method": each.model.decoding_method,
            "model": each.model.name,
            "text": each.text(row),
            "scores": {},
        }
        for each in asked
        if each.is_answered(row)
    ]
    return {**prompt.record, "candidates": [*(prompt.record.get("candidates") or []), *new]}


def _put(staged: Path, path: Path) -> None:
    """Bring a finished file to the disk and put it into its place, whole."""
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)


def build_manifest(prompts: Prompts, asked: Sequence[Asked], kept: int, folder: Path) -> dict[str, Any]:
    """The counts of rows and of each model, and what they were made from. folder: where the finished files lie.

    Raises RuntimeError where prompts were lost on the way, which is a bug: nothing may be taken for complete then.
    """
    if prompts.input != kept + sum(prompts.rejected.values()):
        raise RuntimeError(f"Prompts were lost: {prompts.input} read, {kept} kept, {dict(prompts.rejected)} rejected.")
    return {
        "format": _FORMAT,
        "prompts": {
            "file": str(prompts.path),
            "bytes": prompts.path.stat().st_size,
            "sha256": file_sha256(prompts.path),
        },
        "counts": {"input": prompts.input, "kept": kept, "rejected": dict(sorted(prompts.rejected.items()))},
        "models": {each.model.name: _model_entry(each, len(prompts)) for each in asked},
        "files": {name: file_sha256(folder / name) for name in (ROWS, QUARANTINE)},
    }


def _model_entry(asked: Asked, prompts: int) -> dict[str, Any]:
    """One model: its settings, and prompts = had + answered + missing. No key is in the settings, just its variable."""
    missing = sum(asked.missing.values())
    if prompts != asked.had + asked.answered + missing:
        raise RuntimeError(
            f"Answers of {asked.model.name} were lost: {prompts} prompts, {asked.had} had, {asked.answered} answered, "
            f"{missing} missing."
        )
    return {
        "settings": asdict(asked.model),
        "key": asked.key,
        "prompts": prompts,
        "had": asked.had,
        "answered": asked.answered,
        "missing": dict(sorted(asked.missing.items())),
        "examples": dict(sorted(asked.examples.items())),
    }


def require_answers(asked: Sequence[Asked]) -> None:
    """Raise `UserError`, with what each model said, where not one prompt has a candidate of one of the models."""
    if any(each.answered or each.had for each in asked):
        return
    said = "; ".join(f"{each.model.name}: {next(iter(each.examples.values()), 'nothing')}" for each in asked)
    raise UserError(f"No model answered any prompt, so there are no rows ({said}); mend that and run the same again.")


def summary(manifest: Mapping[str, Any], asked: Sequence[Asked], root: Path) -> list[str]:
    """The lines that tell a reader what came out."""
    counts = manifest["counts"]
    rejected = _counts(counts["rejected"])
    lines = [f"rows: {counts['input']} read, {counts['kept']} kept, rejected: {rejected or 'none'}"]
    for each in asked:
        lines += _model_lines(each)
    lines += [f"results: {root / ROWS}", f"counts: {root / MANIFEST}"]
    if rejected:
        lines.append(f"rejected rows, with reasons: {root / QUARANTINE}")
    if any(each.missing for each in asked):
        lines.append("candidates are missing: the same command asks for those again, and for no others")
    return lines


def _model_lines(asked: Asked) -> list[str]:
    name = asked.model.name
    line = f"{name}: {asked.answered} answered ({asked.earlier} in earlier runs)"
    line += f", {asked.had} in the file already" if asked.had else ""
    line += f", missing: {_counts(asked.missing) or 'none'}"
    lines = [line, *(f"  {reason}: {message}" for reason, message in sorted(asked.examples.items()))]
    if asked.unused:
        lines.append(f"  {asked.unused} answers in the journal are to other prompts or settings, and were not used")
    if asked.damaged:
        lines.append(f"  {asked.damaged} lines of {asked.journal.path} are damaged, and were asked anew")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
