"""Text in, tokenized shards out: `python -m data_pipeline.prepare --input FILES --output ROOT --tokenizer FOLDER`.

Input that is not plain JSON lines on local disk becomes that first (`conversion.py`). Then come two Ray Data plans. The
first reads the lines in byte ranges and checks every one: bad rows go to quarantine.jsonl with file, line and reason;
of good ones the place is remembered. The second takes the places shard by shard, reads those rows again, tokenizes them
and writes one Parquet file each. Reading twice costs little beside tokenizing; it finds duplicate ids and leaks across
files, and gives shards of one size and the same bytes on every run, in memory that does not grow with the input.

The set appears under ROOT at the end, in one step, its manifest written last. On several nodes, input and output must
be on storage that all of them share at the same path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cli import run_command
from data_pipeline.config import PRESETS, SAMPLE, PrepareConfig
from data_pipeline.paths import absolute

if TYPE_CHECKING:
    from data_pipeline.manifest import Job

LABELS = ("bartscore", "bertscore", "rougeL")
"""The scores that are proposed as the label, where there are several."""


def main(config: PrepareConfig) -> None:
    """Prepare shards: read JSON lines, check every row, tokenize each candidate, write Parquet and a manifest."""
    folder = prepare(config)
    ours = config.input == SAMPLE and config.tokenizer == SAMPLE
    print("next:", _next_step(folder, "sample" if ours else "scratch"))


def _next_step(folder: Path, preset: str) -> str:
    """The command that trains on the set in `folder`, or what is missing for it."""
    from data_pipeline.shards import ShardSet

    shards = ShardSet.open(folder, verify=False)
    missing = [name for name in ("train", "dev") if name not in shards.splits]
    if missing:
        return f"no row is in {' or '.join(missing)}, which training needs: see --fractions, or add rows"
    labels = [name for name in LABELS if name in shards.score_names] or list(shards.score_names)
    if not labels:
        return "no candidate has a score to rank by: give them some by python -m data_pipeline.label, and prepare again"
    label = "" if preset == "sample" else f" --data.label {labels[0]}"
    return f"python -m urg.train --config {preset}{label} --data.shards {folder.parent}"


def prepare(config: PrepareConfig) -> Path:
    """Make the prepared set that `config` describes, or find it already there; the set's folder.

    Prints what it does. Raises `UserError` for input without a valid row, and for an output that cannot be written.
    """
    from data_pipeline.commit import is_prepared, locked, name_current, writing

    root = absolute(config.output)
    with locked(root):
        job = _find_job(config, root)
        folder = root / job.key
        if is_prepared(folder):
            print(f"nothing to do: {folder} already holds this input under this configuration")
        else:
            _build(job, root, folder)
        with writing(root):
            name_current(folder)
    return folder


def _find_job(config: PrepareConfig, root: Path) -> Job:
    """Find, or make, the files and the tokenizer that `config` names."""
    from concurrent.futures import ThreadPoolExecutor

    from data_pipeline.inputs import input_files, tokenizer_source
    from data_pipeline.manifest import Job
    from data_pipeline.shard_writing import file_sha256
    from data_pipeline.tokenization import load_tokenizer, tokenizer_fingerprint

    files = input_files(config, root)
    with ThreadPoolExecutor() as threads:  # hashing leaves a core to Python, whose slowest import is this one
        hashing = threads.map(file_sha256, [file.path for file in files])
        from transformers import AutoTokenizer  # noqa: F401

        digests = list(hashing)
    name = tokenizer_source(config, root, files, digests)
    tokenizer = load_tokenizer(name)
    return Job(config, files, digests, name, tokenizer, tokenizer_fingerprint(tokenizer))


def _build(job: Job, root: Path, folder: Path) -> None:
    """Survey, tokenize, write and commit one set."""
    from data_pipeline.commit import commit, staging, writing
    from data_pipeline.manifest import build_manifest, summary, write_manifest
    from data_pipeline.plan import survey_input, write_shards
    from data_pipeline.ray_session import ray_session
    from data_pipeline.shards import TOKENIZER
    from data_pipeline.tokenization import write_tokenizer

    config = job.config
    with staging(root) as staged, ray_session(), writing(root):
        print(f"reading {len(job.files)} file{'s' * (len(job.files) > 1)}", flush=True)
        survey = survey_input(job.files, config, staged)
        survey.require_rows()
        print(f"tokenizing {survey.kept} rows in shards of {config.rows_per_shard}", flush=True)
        write_tokenizer(job.tokenizer, staged / TOKENIZER)
        reports = write_shards(survey, config.rules(), config.lengths, config.rows_per_shard, staged)
        manifest = build_manifest(job, survey, reports, staged)
        write_manifest(manifest, staged)
        commit(staged, folder)
    print("\n".join(summary(manifest, folder)))


if __name__ == "__main__":
    run_command(main, PrepareConfig, presets=PRESETS)
