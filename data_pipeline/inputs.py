"""From a configuration to files: the rows to read, and the tokenizer to read them with; "sample" makes what it names.

What is made is kept below the output root by what it was made from, so that a second run finds it:
root/sources/sample-<key>/{train,dev,test}.jsonl and root/tokenizers/<key>/.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipeline.cleaning import id_digest, split_of
from data_pipeline.config import SAMPLE, TRAIN, PrepareConfig
from data_pipeline.conversion import InputFile, key, made, plain_lines
from data_pipeline.errors import UserError
from data_pipeline.lines import byte_ranges
from data_pipeline.paths import absolute
from data_pipeline.sample import BASE_MODEL
from data_pipeline.sources import list_source

# A tokenizer of some thousand pieces learns nothing more from more text than this.
_TOKENIZER_TEXTS = 200_000


def input_files(config: PrepareConfig, root: Path) -> list[InputFile]:
    """The files of the input in reading order, as plain lines. root: the locked output root.

    Raises `UserError` where there is no such file, or one is empty, damaged or out of reach.
    """
    source = str(_sample_folder(config, root)) if config.input == SAMPLE else config.input
    files = [plain_lines(file, root) for file in list_source(source)]
    byte_ranges([file.path for file in files], size=1 << 30)
    return files


def _sample_folder(config: PrepareConfig, root: Path) -> Path:
    """The folder of the generated corpus, made where it is not there yet."""
    size = config.sample
    folder = root / "sources" / f"sample-{key([size.train, size.dev, size.test, size.seed, _sample_version()])}"
    if folder.is_dir():
        return folder
    from data_pipeline.sample import write_sample

    print(f"generating the sample: {size.train} + {size.dev} + {size.test} rows")

    rows = {split: getattr(size, split) for split in ("train", "dev", "test")}
    return made(folder, root, lambda staged: write_sample(staged, rows, size.seed))


def _sample_version() -> str:
    """What the generator is: a hash of its source, so that a changed generator makes a new corpus."""
    package = Path(__file__).parent
    sources = sorted([*(package / "sample").glob("*.py"), *(package / "quality").glob("*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def tokenizer_source(config: PrepareConfig, root: Path, files: Sequence[InputFile], digests: Sequence[str]) -> str:
    """The folder or hub id of the tokenizer; for "train" a folder, trained on the train split unless it is there.

    digests: the sha256 of each of `files`.
    """
    if config.tokenizer == SAMPLE:
        return str(BASE_MODEL)
    if config.tokenizer != TRAIN:
        folder = absolute(config.tokenizer)
        return str(folder) if folder.is_dir() else config.tokenizer
    if "train" not in {file.split for file in files} and "train" not in config.fractions:
        raise UserError("There is no train split to train a tokenizer on; name a tokenizer folder.")
    own = [(file, digest) for file, digest in zip(files, digests, strict=True) if file.split in (None, "train")]
    fractions = config.fractions if files[0].split is None else None
    folder = root / "tokenizers" / key([config.vocab_size, fractions, [digest for _, digest in own]])
    if not folder.is_dir():
        _train_tokenizer([file.path for file, _ in own], fractions, config.vocab_size, folder, root)
    return str(folder)


def _train_tokenizer(
    files: Sequence[Path], fractions: Mapping[str, float] | None, vocab_size: int, folder: Path, root: Path
) -> None:
    """Train a tokenizer on the train split's rows in `files`: all rows where `fractions` is None."""
    from data_pipeline.train_tokenizer import row_texts, save_tokenizer, train_tokenizer

    print(f"training a tokenizer of {vocab_size} pieces on the train split")

    def in_train(row_id: str) -> bool:
        return fractions is None or split_of(id_digest(row_id), fractions) == "train"

    texts = itertools.islice(row_texts(_lines(files), in_train), _TOKENIZER_TEXTS)
    tokenizer = train_tokenizer(texts, vocab_size)
    made(folder, root, lambda staged: save_tokenizer(tokenizer, staged))


def _lines(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as lines:
            yield from lines
