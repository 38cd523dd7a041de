"""Text in, tokenized shards out: `python -m data_pipeline.prepare --input FILES --output ROOT --tokenizer FOLDER`.

Two Ray Data plans. The first reads the input in byte ranges and checks every line: bad rows go to quarantine.jsonl with
file, line and reason; of good ones the place is remembered. The second takes the places shard by shard, reads those
rows again, tokenizes them and writes one Parquet file each. Reading twice costs little beside tokenizing; it finds
duplicate ids across files, and gives shards of one size and the same bytes on every run, in memory that does not grow
with the input.

The set appears under ROOT at the end, in one step, its manifest written last. On several nodes, input and output must
be on storage that all of them share at the same path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.cleaning import LOG_SCALE_SCORES, MIXINSTRUCT_ALIASES, Rules
from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from data_pipeline.tokenization import Lengths

if TYPE_CHECKING:
    from data_pipeline.manifest import Job

SAMPLE = "sample"


@dataclass(frozen=True)
class SampleSize:
    """How much of the generated corpus to make, for `input: sample`."""

    train: int = 4000
    """Rows of the train split."""
    dev: int = 200
    """Rows of the dev split."""
    test: int = 300
    """Rows of the test split."""
    seed: int = 0
    """Another seed gives another corpus."""

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test"):
            if getattr(self, name) < 1:
                raise UserError(f"sample.{name} is {getattr(self, name)}; give 1 or more rows.")


@dataclass(frozen=True)
class PrepareConfig:
    """What to read, how to clean, split and tokenize it, and where to put it."""

    input: str | dict[str, str] = SAMPLE
    """JSON lines in MixInstruct's schema: a file, a glob, a folder (train*, dev*|val*, test* files give the splits), or
    {split: file, glob or folder}; "sample" generates a corpus."""
    output: str = "data/prepared"
    """Root folder of prepared sets; each configuration gets a folder of its own below it."""
    tokenizer: str = SAMPLE
    """A Hugging Face tokenizer or model folder, or a hub id; "sample" trains a small one on the train split."""
    vocab_size: int = 2048
    """Pieces of the tokenizer that "sample" trains."""
    lengths: Lengths = field(default_factory=Lengths)
    """Tokens kept of each text."""
    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "dev": 0.1, "test": 0.1})
    """Shares of the splits, by a hash of the id, where files do not give the splits."""
    sample: SampleSize = field(default_factory=SampleSize)
    """Size and seed of the generated corpus."""
    rows_per_shard: int = 1024
    """Rows of a shard; one worker holds one shard in memory at a time."""
    aliases: dict[str, str] = field(default_factory=lambda: dict(MIXINSTRUCT_ALIASES))
    """Model names to replace: name in the file → name to use."""
    log_scale_scores: list[str] = field(default_factory=lambda: list(LOG_SCALE_SCORES))
    """Scores on a log scale, of which an exact 0.0 means missing."""
    models: list[str] = field(default_factory=list)
    """Model names to accept, after aliases; a row with another is rejected. Empty = any."""

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise UserError(f"rows_per_shard is {self.rows_per_shard}; give 1 or more.")
        if abs(sum(self.fractions.values()) - 1) > 1e-6 or any(share < 0 for share in self.fractions.values()):
            raise UserError(f"fractions are {self.fractions}; give shares of 0 or more that add up to 1.")

    def rules(self) -> Rules:
        """What cleaning repairs and rejects."""
        return Rules(self.aliases, tuple(self.log_scale_scores), tuple(self.models))


def main(config: PrepareConfig) -> None:
    """Prepare shards: read JSON lines, check every row, tokenize each candidate, write Parquet and a manifest."""
    prepare(config)
    print(f"next: python -m urg.train --data.shards {Path(config.output).expanduser().absolute()}")


def prepare(config: PrepareConfig) -> Path:
    """Make the prepared set that `config` describes, or find it already there; the set's folder.

    Prints what it does. Raises `UserError` for input without a valid row, and for an output that cannot be written.
    """
    from data_pipeline.commit import is_prepared, locked, name_current, writing

    root = Path(config.output).expanduser().absolute()
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
    from data_pipeline.inputs import input_files, tokenizer_source
    from data_pipeline.manifest import Job
    from data_pipeline.shard_writing import file_sha256
    from data_pipeline.tokenization import load_tokenizer, tokenizer_fingerprint

    files = input_files(config, root)
    digests = [file_sha256(path) for _, path in files]
    name = tokenizer_source(config, root, files, digests)
    tokenizer = load_tokenizer(name)
    return Job(config, files, digests, name, tokenizer, tokenizer_fingerprint(tokenizer))


def _build(job: Job, root: Path, folder: Path) -> None:
    """Survey, tokenize, write and commit one set."""
    from data_pipeline.commit import commit, staging, writing
    from data_pipeline.manifest import build_manifest, summary, write_manifest
    from data_pipeline.plan import ray_session, survey_input, write_shards

    config = job.config
    with staging(root) as staged, ray_session(), writing(root):
        print(f"reading {len(job.files)} file{'s' * (len(job.files) > 1)}", flush=True)
        survey = survey_input(job.files, config.fractions, config.rules(), staged)
        survey.require_rows()
        print(f"tokenizing {survey.kept} rows in shards of {config.rows_per_shard}", flush=True)
        job.tokenizer.save_pretrained(str(staged / "tokenizer"))
        reports = write_shards(survey, config.rules(), config.lengths, config.rows_per_shard, staged)
        manifest = build_manifest(job, survey, reports, staged)
        write_manifest(manifest, staged)
        commit(staged, folder)
    print("\n".join(summary(manifest, folder)))


if __name__ == "__main__":
    run_command(main, PrepareConfig)
