"""ROUGE-1, -2, -L and -Lsum by the rouge_score library: Porter stemmer, sentences split for Lsum."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F1 in 0..1 of each prediction against the reference beside it, by metric name (`ROUGE_NAMES`).

    An empty prediction scores 0. A reference without one Latin letter or digit (all that rouge_score sees) can't be
    scored: NaN, which means missing everywhere in this project. Time and memory grow with the product of the lengths.
    Raises ValueError where the lengths differ or a reference is empty.
    Source: Lin 2004; sentences end at [.!?] + space and at line ends (nltk's splitter needs a download).
    """
    require_references(predictions, references)
    rows = [_scores(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]
    return {name: [row[column] for row in rows] for column, name in enumerate(ROUGE_NAMES)}


def require_references(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Raise ValueError unless there is one reference that is not blank for each prediction."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references: give one for each.")
    for index, reference in enumerate(references):
        if not reference.strip():
            raise ValueError(f"Reference {index} is empty: leave the row out, a missing reference has no score.")


def split_sentences(text: str) -> str:
    """`text` with a newline after each sentence, as rouge_score wants it for ROUGE-Lsum."""
    return _SENTENCE_END.sub("\n", text)


# Candidates of one query often coincide, and they come one after another.
@lru_cache(maxsize=256)
def _scores(prediction: str, reference: str) -> tuple[float, ...]:
    tokenizer, words, sentences = _scorers()
    if not tokenizer.tokenize(reference):
        return (float("nan"),) * len(ROUGE_NAMES)
    scores = words.score(reference, prediction)
    scores |= sentences.score(split_sentences(reference), split_sentences(prediction))
    return tuple(float(scores[name].fmeasure) for name in ROUGE_NAMES)


@lru_cache(maxsize=1)
def _scorers() -> tuple[_StemmingTokenizer, Any, Any]:
    """The tokenizer, and rouge_score's scorers: the one for words, the one for texts with a sentence a line."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _StemmingTokenizer()
    words = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizer)
    return tokenizer, words, RougeScorer(["rougeLsum"], tokenizer=tokenizer)


class _StemmingTokenizer:
    """rouge_score's own tokenizer, with a memory: stemming the same words anew is most of its time."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=65_536)(PorterStemmer().stem)
        # Each text is split by two scorers, and a reference once for each candidate.
        self._tokens = lru_cache(maxsize=256)(self._split)

    def _split(self, text: str) -> tuple[str, ...]:
        from rouge_score.tokenize import tokenize

        return tuple(tokenize(text, self))

    def tokenize(self, text: str) -> list[str]:
        """Lower-case stems of the words of `text`, as `rouge_score.tokenizers.DefaultTokenizer(True)` gives them."""
        return list(self._tokens(text))
