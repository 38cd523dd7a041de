"""Texts to tokens, many at once: ids lie in flat arrays, and a word that comes again is not encoded again.

Text is always encoded as plain text: a candidate that writes `</s>` or `<response>` cannot forge the template.

Some tokenizers split every text before each space and look at nothing beyond, T5's, BERT's and byte-level BPE among
them (`_splits_at_spaces`). For these, texts are cut there, and each distinct piece is encoded once and remembered: the
ids are those of the whole text, for a fraction of the time. Texts with other than single spaces between two printable
ASCII characters are encoded whole, and so are all texts of other tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.config import Lengths
from data_pipeline.schema import Example
from data_pipeline.tokenization import Template, question_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Texts far over the limit are cut to this many characters a token before they are encoded: a 100 kB answer of which 128
# tokens are kept should not cost 100 kB of tokenization. If the cut was too short, the whole text is encoded after all.
_CHARACTERS_PER_TOKEN = 8
# The last tokens before a cut may differ from those of the whole text, so that many more than the limit must be there.
_CUT_MARGIN_TOKENS = 32

# A text is odd that has another space than a single one between two printable ASCII characters.
_ODD = r"(?:^|[^!-~]) | (?:$|[^!-~])"
_LONGEST_WORD = 48  # longer ones hardly come again
_MOST_WORDS = 1 << 18  # some 50 MB

_LOCAL_NORMALIZERS = {"Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_SPLITTERS = {"ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_FURTHER_SPLITTERS = {"Digits", "Punctuation"}

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Tokens:
    """The tokens of many texts. ids: int32, one text after the other; offsets: int32 [N + 1], where each starts, and
    the end; cut: bool [N], which texts had more tokens than are kept."""

    ids: np.ndarray
    offsets: np.ndarray
    cut: np.ndarray

    def __len__(self) -> int:
        return len(self.cut)

    def __getitem__(self, text: int) -> np.ndarray:
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int32 [N]."""
        return np.diff(self.offsets)

    def ended(self, eos_id: int, where: np.ndarray) -> Tokens:
        """The same with `eos_id` behind each text of `where`, bool [N]."""
        offsets = run_offsets(self.lengths + where)
        ids = np.full(offsets[-1], eos_id, dtype=np.int32)
        own = np.ones(len(ids), dtype=bool)
        own[offsets[1:][where] - 1] = False
        ids[own] = self.ids
        return Tokens(ids, offsets, self.cut)


@dataclass(frozen=True)
class EncodedRows:
    """The tokens of R rows. questions [R]; responses: the candidates of all rows, one row after the other;
    n_candidates: of each row, int32 [R]; targets [R]: ending in eos, [0] where there is no reference."""

    questions: Tokens
    responses: Tokens
    n_candidates: np.ndarray
    targets: Tokens


def encode_rows(examples: Sequence[Example], encoder: Encoder, lengths: Lengths) -> EncodedRows:
    """The tokens of rows; one call of the tokenizer for all texts of a kind."""
    targets = encoder.encode([row.output for row in examples], lengths.target - 1)
    return EncodedRows(
        encoder.encode([question_text(row.instruction, row.input) for row in examples], lengths.question),
        encoder.encode([candidate.text for row in examples for candidate in row.candidates], lengths.response),
        np.array([len(row.candidates) for row in examples], dtype=np.int32),
        targets.ended(encoder.template.eos_id, np.array([bool(row.output) for row in examples], dtype=bool)),
    )


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[tuple[np.ndarray, bool]]:
    """The first `limit` tokens (int32) of each text as plain text, no specials added, and whether there were more.

    For a few texts; an `Encoder` is faster for many."""
    tokens = Encoder.of(tokenizer, by_words=False).encode(texts, limit)
    return [(tokens[text], bool(tokens.cut[text])) for text in range(len(tokens))]


class Encoder:
    """Encodes plain text with one tokenizer, and remembers its words."""

    def __init__(self, encode: Encode, template: Template, by_words: bool) -> None:
        """encode: the ids of texts, no special token looked for or added. by_words: whether it splits at spaces."""
        self.template = template
        self._encode = encode
        self._reserved = {each for each in vars(template).values() if each is not None}
        self._by_words = by_words
        self._words: dict[str, bytes] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, by_words: bool = True) -> Encoder:
        """That of a tokenizer from `load_tokenizer`. by_words: False encodes every text whole."""
        template, backend = Template.from_tokenizer(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:  # a slow tokenizer, such as ByT5's
            return cls(_slow(tokenizer), template, by_words=False)
        return cls(_fast(backend), template, by_words and _splits_at_spaces(backend))

    @classmethod
    def load(cls, folder: Path, template: Template) -> Encoder:
        """That of a saved tokenizer which `stands_alone`: without transformers, which takes seconds to import."""
        backend = _saved_backend(folder)
        return cls(_fast(backend), template, _splits_at_spaces(backend))

    def encode(self, texts: Sequence[str], limit: int) -> Tokens:
        """The first `limit` tokens of each text, no specials added."""
        characters = _CHARACTERS_PER_TOKEN * (limit + _CUT_MARGIN_TOKENS)
        runs = self._runs([text[:characters] for text in texts])
        enough = limit + _CUT_MARGIN_TOKENS
        cut_too_short = [
            index for index, text in enumerate(texts) if len(text) > characters and runs.lengths[index] < enough
        ]
        if cut_too_short:
            runs = runs.replaced(cut_too_short, self._runs([texts[index] for index in cut_too_short]))
        kept = np.minimum(runs.lengths, limit)
        return Tokens(_Runs(runs.ids, runs.starts, kept).joined(), run_offsets(kept), runs.lengths > limit)

    def _runs(self, texts: Sequence[str]) -> _Runs:
        """All tokens of each text."""
        if not self._by_words:
            return _Runs.of(self._plain_ids(texts))
        import pyarrow as pa
        import pyarrow.compute as pc

        column = pa.array(texts, pa.large_string())
        odd = pc.match_substring_regex(column, _ODD)
        by_words = self._runs_of_words(pc.if_else(odd, "", column))
        rows = np.flatnonzero(odd.to_numpy(zero_copy_only=False)).tolist()
        return by_words.replaced(rows, _Runs.of(self._plain_ids([texts[row] for row in rows])))

    def _runs_of_words(self, texts: Any) -> _Runs:
        """All tokens of each text of an Arrow array, by its words, each but the first with the space before it."""
        import pyarrow.compute as pc

        split = pc.split_pattern(texts, " ")
        words = split.values.dictionary_encode()
        distinct, each = words.dictionary.to_pylist(), words.indices.to_numpy().copy()
        offsets = split.offsets.to_numpy()
        opening, place = np.unique(each[offsets[:-1]], return_inverse=True)
        each[offsets[:-1]] = len(distinct) + place
        known = self._known([*(f" {word}" for word in distinct), *(distinct[word] for word in opening)])
        lengths = known.lengths[each]
        ends = run_offsets(lengths)[offsets]
        return _Runs(_Runs(known.ids, known.starts[each], lengths).joined(), ends[:-1], np.diff(ends))

    def _known(self, words: list[str]) -> _Runs:
        """The tokens of each word; those of short ones are remembered."""
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        new = [word for word in words if word not in self._words]
        learnt = {word: np.array(ids, np.int32).tobytes() for word, ids in zip(new, self._plain_ids(new), strict=True)}
        self._words |= {word: ids for word, ids in learnt.items() if len(word) <= _LONGEST_WORD}
        found = [learnt[word] if word in learnt else self._words[word] for word in words]
        lengths = np.array([len(ids) for ids in found], dtype=np.int32) // 4
        return _Runs(np.frombuffer(b"".join(found), np.int32), run_offsets(lengths)[:-1], lengths)

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, specials in it read as plain text."""
        # T5's vocabulary holds "</s>" and "<pad>" as pieces too, which plain text may match: those are dropped.
        return [
            ids if self._reserved.isdisjoint(ids) else [token for token in ids if token not in self._reserved]
            for ids in (self._encode(texts) if texts else [])
        ]


@dataclass(frozen=True)
class _Runs:
    """Runs of ids within one array: run i is ids[starts[i]:starts[i] + lengths[i]]; in any order, some twice."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> _Runs:
        lengths = np.array([len(ids) for ids in lists], dtype=np.int32)
        ids = np.fromiter((token for ids in lists for token in ids), np.int32, int(lengths.sum()))
        return cls(ids, run_offsets(lengths)[:-1], lengths)

    def joined(self) -> np.ndarray:
        """The ids of all runs, one after the other."""
        offsets = run_offsets(self.lengths)
        return self.ids[np.repeat(self.starts - offsets[:-1], self.lengths) + np.arange(offsets[-1])]

    def replaced(self, rows: list[int], others: _Runs) -> _Runs:
        """The same with `others` in the place of the runs `rows`."""
        starts, lengths = self.starts.copy(), self.lengths.copy()
        starts[rows], lengths[rows] = others.starts + len(self.ids), others.lengths
        return _Runs(np.concatenate([self.ids, others.ids]), starts, lengths)


def run_offsets(lengths: np.ndarray) -> np.ndarray:
    """Where runs of these lengths start when they lie one after the other, and the end: int32 [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _slow(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """The ids of texts by a tokenizer that is Python all through."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        told: Any = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(told["input_ids"])

    return encode


def _fast(backend: Tokenizer) -> Encode:
    """The ids of texts by the Rust tokenizer itself; transformers takes longer, for offsets and masks nobody reads."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


def stands_alone(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer.json in `folder` by itself encodes as `tokenizer`, which was loaded from there, does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not (folder / "tokenizer.json").is_file():
        return False
    return bool(_saved_backend(folder).to_str() == backend.to_str())


def _saved_backend(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _splits_at_spaces(backend: Tokenizer) -> bool:
    """Whether a single space between two printable ASCII characters always begins a piece of its own for `backend`,
    whatever stands around: so only where every step of it is known to look at nothing beyond."""
    if getattr(backend.model, "dropout", None):
        return False
    if not all(token.special for token in backend.get_added_tokens_decoder().values()):
        return False  # others are looked for in the whole text, and may hold spaces
    normalizers = _steps(backend.normalizer, "normalizers")
    splitters = _steps(backend.pre_tokenizer, "pretokenizers")
    kinds = {step["type"] for step in splitters}
    if [step["type"] for step in normalizers] == ["BertNormalizer"]:
        return kinds == {"BertPreTokenizer"}
    return (
        {step["type"] for step in normalizers} <= _LOCAL_NORMALIZERS
        and kinds <= _SPLITTERS | _FURTHER_SPLITTERS
        and bool(kinds & _SPLITTERS)
        and all(step.get("use_regex", True) and step.get("split", True) for step in splitters)
    )


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """The settings of a tokenizer's normalizer or splitter; of a sequence, those of each within it."""
    if part is None:
        return []
    settings = json.loads(part.__getstate__())
    return settings[inner] if settings["type"] == "Sequence" else [settings]
