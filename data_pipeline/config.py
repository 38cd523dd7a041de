"""Every setting of the data pipeline: frozen dataclasses, checked on construction, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.cleaning import LOG_SCALE_SCORES, MIXINSTRUCT_ALIASES, Rules
from data_pipeline.errors import UserError

PRESETS = Path(__file__).parent / "configs"
SAMPLE = "sample"
TRAIN = "train"


@dataclass(frozen=True)
class Lengths:
    """How many tokens are kept of each text; the defaults are LLM-Blender's."""

    question: int = 128
    """Tokens kept of instruction and input, special tokens not counted."""
    response: int = 128
    """Tokens kept of one candidate, special tokens not counted."""
    target: int = 128
    """Tokens kept of the reference, its final end-of-sequence token counted."""

    def __post_init__(self) -> None:
        for name in ("question", "response", "target"):
            if getattr(self, name) < 1:
                raise UserError(f"lengths.{name} is {getattr(self, name)}; give 1 or more tokens.")


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
    """Rows in MixInstruct's schema: a file, a glob, a folder (train*, dev*|val*, test* files give the splits), a URL
    (s3://, gs://, https://, …), hf:owner/name[@revision] of the Hugging Face hub, or {split: one of these}. JSON lines,
    plain, .gz or .zst; Parquet; Arrow, as `datasets` saves it too. "sample" generates a corpus."""
    output: str = "data/prepared"
    """Root folder of prepared sets; each configuration gets a folder of its own below it."""
    tokenizer: str = SAMPLE
    """A Hugging Face tokenizer or model folder, or a hub id; "sample" is that of the small base model that ships with
    the project, "train" trains one on the train split."""
    vocab_size: int = 2048
    """Pieces of the tokenizer that "train" makes."""
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
    characters: Literal["keep", "clean", "reject"] = "keep"
    """Control characters, byte-order marks, lone surrogates, text that is not NFC: keep (and count them), clean, or
    reject rows with control characters or lone surrogates and clean the rest."""
    leaks: Literal["report", "drop"] = "report"
    """Rows of train whose prompt stands in dev or test too, and of dev in test: report them, or drop them, to the
    quarantine."""
    near_duplicates: float | None = None
    """From which similarity on (0..1, of 5-character sets; 0.8 is usual) prompts count as the same for `leaks`; none =
    only equal ones, up to case and white space. It takes 512 bytes of memory a row."""

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise UserError(f"rows_per_shard is {self.rows_per_shard}; give 1 or more.")
        if abs(sum(self.fractions.values()) - 1) > 1e-6 or any(share < 0 for share in self.fractions.values()):
            raise UserError(f"fractions are {self.fractions}; give shares of 0 or more that add up to 1.")
        for name, allowed in (("characters", ("keep", "clean", "reject")), ("leaks", ("report", "drop"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)}; give one of {', '.join(allowed)}.")
        if self.near_duplicates is not None and not 0 < self.near_duplicates < 1:
            raise UserError(
                f"near_duplicates is {self.near_duplicates}; give a similarity between 0 and 1, such as 0.8."
            )

    def rules(self) -> Rules:
        """What cleaning repairs and rejects."""
        return Rules(self.aliases, tuple(self.log_scale_scores), tuple(self.models), self.characters)


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """What to train on, how large, and where to put it."""

    input: str
    """Rows in MixInstruct's schema, from any source that `prepare` reads; rows that cannot be read are skipped."""
    output: str
    """Folder for the tokenizer; it is created."""
    vocab_size: int = 2048
    """Pieces in all, 5 control tokens and 256 bytes included."""
