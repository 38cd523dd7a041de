"""Texts behind a prefix token: `[CLS] <|source|> x [SEP]`, by any Hugging Face tokenizer.

Special tokens that a text itself contains become blanks, so that a candidate cannot forge a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE, CANDIDATE, FIRST, SECOND = "<|source|>", "<|candidate|>", "<|candidate1|>", "<|candidate2|>"
PREFIXES = (SOURCE, FIRST, SECOND, CANDIDATE)  # in the order of PairRM's vocabulary

Ids = NDArray[np.int64]
_CHARACTERS_PER_TOKEN = 8  # texts far over the limit are cut to this many characters a token before they are encoded
_MARGIN_TOKENS = 32  # a cut text must give so many tokens more than are kept: those before a cut may differ


class PrefixedTexts:
    """Makes token ids of texts behind one of PREFIXES; adds to `tokenizer` those that it lacks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if end is None or tokenizer.pad_token_id is None:
            raise UserError(
                "the ranker's tokenizer lacks a separator (sep or eos) or a pad token: use an encoder's, as BERT's."
            )
        vocabulary = tokenizer.get_vocab()
        tokenizer.add_tokens([prefix for prefix in PREFIXES if prefix not in vocabulary], special_tokens=True)
        self.tokenizer, self.end_id, self.pad_id = tokenizer, int(end), int(tokenizer.pad_token_id)
        vocabulary = tokenizer.get_vocab()
        self.prefix_ids = {prefix: vocabulary[prefix] for prefix in PREFIXES}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted({*special, *PREFIXES}, key=len, reverse=True))))

    def encode(self, prefix: str, texts: Sequence[str], limit: int) -> list[Ids]:
        """At most `limit` ids of each text: the tokenizer's opening (if it has one), the prefix, the text, the end."""
        clean = [self._special.sub(" ", text) for text in texts]
        characters = _CHARACTERS_PER_TOKEN * (limit + _MARGIN_TOKENS)
        ids = self._ids(prefix, [text[:characters] for text in clean])
        short = [i for i, t in enumerate(clean) if len(t) > characters and len(ids[i]) < limit + _MARGIN_TOKENS]
        for i, whole in zip(short, self._ids(prefix, [clean[i] for i in short]), strict=True):
            ids[i] = whole
        return [self.cut(np.array([*row, self.end_id], dtype=np.int64), limit) for row in ids]

    def cut(self, ids: Ids, limit: int) -> Ids:
        """The first ids of an encoded text, `limit` at most, the last one its end."""
        return ids if len(ids) <= limit else np.append(ids[: limit - 1], self.end_id)

    def place(self, prefix: str, ids: Ids) -> int:
        """Where the prefix stands in the ids of a text."""
        return int(np.flatnonzero(ids == self.prefix_ids[prefix])[0])

    def renamed(self, prefix: str, ids: Ids, other: str) -> Ids:
        """The same text behind another prefix."""
        return np.where(ids == self.prefix_ids[prefix], self.prefix_ids[other], ids)

    def _ids(self, prefix: str, texts: Sequence[str]) -> list[list[int]]:
        """Ids without a final end."""
        if not texts:
            return []
        rows = self.tokenizer([prefix + text for text in texts], verbose=False)["input_ids"]
        return [row[:-1] if row[-1] == self.end_id else row for row in rows]
