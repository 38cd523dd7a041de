"""Rows of MixInstruct's shape and lengths, for timing: the text means nothing, its lengths are MixInstruct's.

Questions have 20 tokens on average and responses 66, log-normal, cut at 128 (URG, §4.1). Words follow Zipf's law, and
one in fifty comes only once, as names, numbers and slips do: an encoder that remembers words must not know them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MODELS = tuple(f"model-{i:02d}" for i in range(12))
SCORES = ("bertscore", "bartscore", "bleu", "rouge1", "rouge2", "rougeL", "rougeLsum")
QUESTION_TOKENS, RESPONSE_TOKENS, LONGEST = 20.0, 66.0, 128
_SIGMA = 0.8  # of the log of a length
_LANGUAGE = 0  # the words are the same whatever the seed, for a tokenizer is trained on other rows than it encodes
_WORDS = 20_000
_ONCE = 0.02  # share of words that come only once: 5 % in 1 million words of real answers, less in more
_POOL = 1 << 20
_LETTERS = "etaoinshrdlucmfwypvbgk"


def write_corpus(path: Path, rows: int, seed: int, tokens_per_word: float = 1.0) -> None:
    """`rows` JSON lines. tokens_per_word: of the tokenizer that will read them, for the lengths are in tokens."""
    with path.open("w", encoding="utf-8") as file:
        for row in corpus_rows(rows, seed, tokens_per_word):
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def corpus_rows(rows: int, seed: int, tokens_per_word: float = 1.0) -> Iterator[dict[str, object]]:
    """The rows, the same for the same seed."""
    pool, rng = _pool(np.random.default_rng(_LANGUAGE)), np.random.default_rng(seed)
    question = lengths(rng, rows, QUESTION_TOKENS)
    answers = lengths(rng, rows * (len(MODELS) + 1), RESPONSE_TOKENS).reshape(rows, -1)

    def text(tokens: int) -> str:
        start = int(rng.integers(0, _POOL - LONGEST))
        words = pool[start : start + max(1, round(tokens / tokens_per_word))]
        for place in rng.integers(0, len(words), rng.binomial(len(words), _ONCE)):
            words[place] = "".join(_LETTERS[i] for i in rng.integers(0, len(_LETTERS), 11))
        return " ".join(words)

    for index in range(rows):
        scores = rng.random((len(MODELS), len(SCORES))).round(4).tolist()
        candidates = [
            {
                "decoding_method": "top_p_sampling",
                "model": model,
                "text": text(tokens),
                "scores": dict(zip(SCORES, own, strict=True)),
            }
            for model, tokens, own in zip(MODELS, answers[index, 1:], scores, strict=True)
        ]
        yield {
            "id": f"benchmark/{seed}-{index}",
            "instruction": text(question[index]),
            "input": "",
            "output": text(answers[index, 0]),
            "candidates": candidates,
        }


def lengths(rng: np.random.Generator, size: int, mean: float) -> np.ndarray:
    """int64 [size]: log-normal, 1 to 128, such that the mean is `mean` after the cut."""
    normal = rng.standard_normal(size)
    low, high = -5.0, 10.0
    for _ in range(40):  # the mean grows with the location: bisect
        middle = (low + high) / 2
        cut = np.clip(np.exp(middle + _SIGMA * normal), 1, LONGEST)
        low, high = (middle, high) if cut.mean() < mean else (low, middle)
    return np.clip(np.exp(low + _SIGMA * normal), 1, LONGEST).round().astype(np.int64)


def _pool(rng: np.random.Generator) -> list[str]:
    """Words in a row, frequent ones short and often, as in a natural language (Zipf's law)."""
    letters = np.array(list(_LETTERS))
    weight = 1.0 / np.arange(1, len(letters) + 1)
    sizes = np.clip((np.log2(np.arange(2, _WORDS + 2)) * 0.6).round().astype(int), 1, 10)
    drawn = rng.choice(letters, size=int(sizes.sum()), p=weight / weight.sum())
    words = ["".join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]
    frequency = 1.0 / np.arange(1, _WORDS + 1)
    return [words[i] for i in rng.choice(_WORDS, size=_POOL, p=frequency / frequency.sum())]
