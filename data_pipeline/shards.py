"""Read prepared data: the only way that the rest of the project does.

    shards = ShardSet.open("data/prepared")      # one prepared set, or the root whose CURRENT names the newest
    train = shards.split("train")
    train[0].response_ids, train.encoder_tokens, train.same_as(0)

The Parquet shards are checked against the manifest and then read through a cache of memory-mapped Arrow files: a row is
read in microseconds, all processes of a machine share the memory, and nothing is held that was not asked for.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from data_pipeline.config import Lengths
from data_pipeline.errors import UserError
from data_pipeline.paths import absolute
from data_pipeline.shard_cache import damaged, map_shard
from data_pipeline.shard_writing import READABLE_VERSIONS, SCHEMA_VERSION, SCORE_PREFIX, file_sha256, first_alike
from data_pipeline.tokenization import Template, load_tokenizer, tokenizer_fingerprint

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

MANIFEST = "manifest.json"
CURRENT = "CURRENT"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class TokenizedExample:
    """One row. Arrays are read-only views of the mapped file: copy before you write into them.

    models, texts: one a candidate. scores: by name float64 [N], NaN = missing; every score of the set is there.
    question_ids int32 [Lq]; response_ids: N of int32 [Lr_i], [0] for an empty text; target_ids int32 [T], ending in
    eos, [0] without a reference. Special tokens are in target_ids only: `Template.candidate_ids` adds the others.
    """

    id: str
    instruction: str
    input: str
    output: str
    models: tuple[str, ...]
    texts: tuple[str, ...]
    scores: dict[str, np.ndarray]
    cmp_results: dict[str, str] | None
    question_ids: np.ndarray
    response_ids: tuple[np.ndarray, ...]
    target_ids: np.ndarray


class ShardSet:
    """A prepared set: its manifest, its tokenizer and its splits. Make one with `ShardSet.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.template = Template(**manifest["template"])
        self.lengths = Lengths(**manifest["lengths"])
        self.splits: tuple[str, ...] = tuple(name for name, split in manifest["splits"].items() if split["rows"])
        self.score_names: tuple[str, ...] = tuple(manifest["score_names"])
        self.models: tuple[str, ...] = tuple(manifest["models"])

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> ShardSet:
        """Open a prepared set, or the newest below an output root.

        verify: compare the sha256 of every shard, which reads all of them; sizes are compared in any case.
        Raises `UserError` that names what is missing, truncated or altered.
        """
        found = _find_set(absolute(folder))
        shards = cls(found, _read_manifest(found))
        for split in shards.manifest["splits"].values():
            for shard in split["shards"]:
                _check_shard(found / shard["file"], shard, verify)
        return shards

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the tokens, from the set's own copy."""
        tokenizer = load_tokenizer(self.folder / TOKENIZER)
        if tokenizer_fingerprint(tokenizer) != self.manifest["tokenizer"]["fingerprint"]:
            raise UserError(
                f"{self.folder / TOKENIZER} is not the tokenizer that made these shards; prepare them again."
            )
        return tokenizer

    def split(self, name: str) -> Split:
        """The rows of one split. Raises `UserError` for a name there is not."""
        if name not in self.splits:
            raise UserError(f"{self.folder} has no split {name}; it has {', '.join(self.splits)}.")
        return Split(self, name)


class Split(Sequence[TokenizedExample]):
    """The rows of one split, in the order of the source.

    n_candidates, target_tokens (0 = no reference), encoder_tokens (sum over candidates of the template's length):
    int32 [R] each, read without touching the rows.
    """

    def __init__(self, shards: ShardSet, name: str) -> None:
        self.name = name
        self._folder = shards.folder
        self._statistics = shards.manifest["splits"][name]
        self._shards = [_Shard(shards, entry) for entry in self._statistics["shards"]]
        self._ends = np.cumsum([shard.rows for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard, row = self._place(index)
        return shard.read(row)

    def same_as(self, index: int) -> np.ndarray:
        """Of each candidate of a row, the index of the first with the same text: its own where none is before it, int32
        [N]. Identical candidates are all kept."""
        shard, row = self._place(index)
        return shard.same_as(row)

    def _place(self, index: int) -> tuple[_Shard, int]:
        """The shard of a row, and the row's number there."""
        row = operator.index(index)
        row += len(self) if row < 0 else 0
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of split {self.name}, which has {len(self)}")
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return self._shards[shard], row - (int(self._ends[shard - 1]) if shard else 0)

    @cached_property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [row_id for shard in self._shards for row_id in shard.ids()]

    @cached_property
    def n_candidates(self) -> np.ndarray:
        """Candidates of each row, int32 [R]."""
        return np.concatenate([shard.numbers("n_candidates") for shard in self._shards])

    @cached_property
    def target_tokens(self) -> np.ndarray:
        """Target tokens of each row, eos counted, 0 = no reference, int32 [R]."""
        return np.concatenate([shard.numbers("target_tokens") for shard in self._shards])

    @cached_property
    def encoder_tokens(self) -> np.ndarray:
        """Tokens that the encoder reads for each row, all candidates together, int32 [R]."""
        return np.concatenate([shard.numbers("encoder_tokens") for shard in self._shards])

    def has_label(self, name: str) -> int:
        """In how many rows some candidate has the score `name`. Raises `UserError`, with what to do, where none has."""
        scores = self._statistics["scores"]
        if name not in scores:
            raise UserError(
                f"No row of split {self.name} in {self._folder} has the score {name}; "
                f"rank by one that is there ({', '.join(scores) or 'there is none'}), or {_how_to_label(name)}, "
                "and prepare again."
            )
        return int(scores[name]["rows"])


def _how_to_label(name: str) -> str:
    """What puts the score `name` into rows."""
    from data_pipeline.quality.metrics import METRICS

    if any(name in metric.fields for metric in METRICS.values()):
        return f"compute {name} by python -m data_pipeline.label --metrics {name}"
    return f"compute {name}, put it into the rows' candidates[].scores"


class _Shard:
    """One memory-mapped shard. Columns are numpy views: of a list column its offsets and its values."""

    def __init__(self, shards: ShardSet, entry: dict[str, Any]) -> None:
        self.rows: int = entry["rows"]
        self._score_names = shards.score_names
        self._columns = map_shard(shards.folder, entry)
        names = ["question_ids", "target_ids", *(SCORE_PREFIX + name for name in self._score_names)]
        names += ["same_as"] if "same_as" in self._columns else []
        self._lists = {name: _offsets_and_values(self._columns[name]) for name in names}
        nested = self._columns["response_ids"]
        self._responses = (nested.offsets.to_numpy(), *_offsets_and_values(nested.values))

    def numbers(self, column: str) -> np.ndarray:
        """A column of plain numbers, without a copy."""
        return self._columns[column].to_numpy()  # type: ignore[no-any-return]

    def ids(self) -> list[str]:
        """The id of each row of this shard."""
        return self._columns["id"].to_pylist()  # type: ignore[no-any-return]

    def read(self, row: int) -> TokenizedExample:
        """Row number `row` of this shard."""
        comparisons = self._text("cmp_results", row)
        starts, token_starts, tokens = self._responses
        bounds = token_starts[starts[row] : starts[row + 1] + 1]
        return TokenizedExample(
            id=self._text("id", row),
            instruction=self._text("instruction", row),
            input=self._text("input", row),
            output=self._text("output", row),
            models=tuple(self._columns["models"][row].as_py()),
            texts=tuple(self._columns["texts"][row].as_py()),
            scores={name: self._slice(SCORE_PREFIX + name, row) for name in self._score_names},
            cmp_results=None if comparisons is None else json.loads(comparisons),
            question_ids=self._slice("question_ids", row),
            response_ids=tuple(tokens[start:end] for start, end in itertools.pairwise(bounds)),
            target_ids=self._slice("target_ids", row),
        )

    def same_as(self, row: int) -> np.ndarray:
        """`Split.same_as`; found from the texts in sets of version 1."""
        if "same_as" in self._lists:
            return self._slice("same_as", row)
        return np.array(first_alike(self._columns["texts"][row].as_py()), dtype=np.int32)

    def _text(self, column: str, row: int) -> Any:
        return self._columns[column][row].as_py()

    def _slice(self, column: str, row: int) -> np.ndarray:
        offsets, values = self._lists[column]
        return values[offsets[row] : offsets[row + 1]]


def _offsets_and_values(column: pyarrow.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as numpy: row i is values[offsets[i]:offsets[i + 1]]."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def _find_set(folder: Path) -> Path:
    """The prepared set at `folder`, or the one that its CURRENT names."""
    if (folder / MANIFEST).is_file():
        return folder
    try:
        newest = folder / (folder / CURRENT).read_text(encoding="utf-8").strip()
    except OSError:
        newest = folder
    if not (newest / MANIFEST).is_file():
        raise UserError(
            f"There is no prepared data in {newest}; make it with: "
            f"python -m data_pipeline.prepare --input ROWS.jsonl --tokenizer MODEL --output {folder}"
        )
    return newest


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a set. Raises `UserError` where it is damaged or of another version."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder / MANIFEST, f"{type(error).__name__}") from error
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"{folder} was prepared in version {version} of the format, this is {SCHEMA_VERSION}; prepare it again."
        )
    return manifest  # type: ignore[no-any-return]


def _check_shard(path: Path, entry: dict[str, Any], verify: bool) -> None:
    """Raises `UserError` where the shard is missing, truncated or (with `verify`) altered."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise damaged(path, "it is missing") from error
    if size != entry["bytes"]:
        raise damaged(path, f"{size} bytes where the manifest has {entry['bytes']}")
    if verify and file_sha256(path) != entry["sha256"]:
        raise damaged(path, "its content is not what was prepared")
