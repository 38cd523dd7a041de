"""Endless generated text for pre-training a base model by denoising and copying, never on rows of the sample.

A row of the sample asks a question and shows the answers of simulated models. Here nobody asks and no model answers: a
true text is damaged word by word, once or several times, and has to be restored. Its facts come from a share of all
facts that no split of the sample can draw (`kinds.draw_task`), but sentences and words are of the same kind, as
the language of a real base model is that of its later use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from random import Random

from data_pipeline.sample import words as sample_words
from data_pipeline.sample.kinds import draw_task
from data_pipeline.sample.tasks import Task

MIX = {"copy": 0.15, "vote": 0.25, "restore": 0.60}
"""Share of each exercise: copy a clean text; restore a text from damaged copies by what most of them say; restore it
with the help of a passage of facts, which stands where a URG input has the question."""


@dataclass(frozen=True)
class PretrainingExample:
    """In the shape of a URG row: each response is encoded with the passage, the decoder reads all of them."""

    passage: str
    """Facts to check the responses by; "" for none."""
    responses: tuple[str, ...]
    """One clean copy of the target, or one to four damaged ones."""
    target: str


def pretraining_examples(seed: int) -> Iterator[PretrainingExample]:
    """Endless examples, the same for the same seed."""
    rng = Random(f"{seed}/pretraining")
    while True:
        _, task = draw_task("pretraining", rng)
        exercise = rng.choices(tuple(MIX), tuple(MIX.values()))[0]
        yield _example(exercise, task, rng)


def ranking_examples(seed: int) -> Iterator[PretrainingExample]:
    """Endless examples with four to six copies of a text, damaged more or less: to restore, and to rank by damage."""
    rng = Random(f"{seed}/pretraining/ranking")
    while True:
        _, task = draw_task("pretraining", rng)
        target = task.reference()
        copies = tuple(_damaged(target, task.context, rng.uniform(0.0, 0.7), rng) for _ in range(rng.randint(4, 6)))
        yield PretrainingExample(task.context, copies, target)


def pretraining_pairs(seed: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Endless (source texts, target text); each source is encoded alone, and the decoder attends to all of them.

    The same as `pretraining_examples`, for a model whose input has no places for question and response.
    """
    for example in pretraining_examples(seed):
        before = f"{example.passage}\n" if example.passage else ""
        yield tuple(before + response for response in example.responses), example.target


def _example(exercise: str, task: Task, rng: Random) -> PretrainingExample:
    if exercise == "restore":
        target = task.reference()
        damage, copies = rng.uniform(0.1, 0.6), rng.randint(1, 3)
        # What a single copy has lost, nobody could know was there.
        shorten = copies > 1
        responses = tuple(_damaged(target, task.context, damage, rng, shorten) for _ in range(copies))
        return PretrainingExample(task.context, responses, target)
    target = rng.choice([task.context, task.reference(), task.reference()])
    if exercise == "copy":
        return PretrainingExample("", (target,), target)
    responses = tuple(_damaged(target, target, 0.2, rng) for _ in range(rng.randint(3, 4)))
    return PretrainingExample("", responses, target)


def _damaged(text: str, nearby: str, damage: float, rng: Random, shorten: bool = True) -> str:
    """`text` with about `damage` of its listed words replaced, and at times two of them in each other's place; if
    `shorten`, at times without its end or a sentence."""
    words = [_replaced(word, nearby, rng) if rng.random() < damage else word for word in text.split()]
    if rng.random() < damage:
        words = _exchanged(words, rng)
    point = rng.random() if shorten else 1.0
    if point < 0.15:
        words = words[: max(1, round(len(words) * rng.uniform(0.3, 0.8)))]
    sentences = " ".join(words).split(". ")
    if 0.15 <= point < 0.30 and len(sentences) > 1:
        del sentences[rng.randrange(len(sentences))]
    return ". ".join(sentences)


def _exchanged(words: list[str], rng: Random) -> list[str]:
    """The same words, two of one list in each other's place, as where an order is wrong."""
    listed = [i for i, word in enumerate(words) if _bare(word) in _lists()]
    pairs = [(i, j) for i, j in combinations(listed, 2) if _bare(words[j]) in _lists()[_bare(words[i])]]
    if not pairs:
        return words
    i, j = rng.choice(pairs)
    words = list(words)
    one, other = _bare(words[i]), _bare(words[j])
    words[i], words[j] = words[i].replace(one, other), words[j].replace(other, one)
    return words


def _replaced(word: str, nearby: str, rng: Random) -> str:
    """Another word of the same list, half of the time one that stands nearby; words of no list stay."""
    bare = _bare(word)
    alike = _lists().get(bare)
    if alike is None:
        return word
    near = [other for other in _listed_words(nearby) if other in alike and other != bare]
    other = rng.choice(near if near and rng.random() < 0.5 else alike)
    return word.replace(bare, other)


def _listed_words(text: str) -> list[str]:
    return [bare for word in text.split() if (bare := _bare(word)) in _lists()]


def _bare(word: str) -> str:
    """A word without its punctuation."""
    return word.strip(".,:;()-")


@cache
def _lists() -> dict[str, Sequence[str]]:
    """The list that each word of `sample_words` stands in."""
    lists = [value for name, value in vars(sample_words).items() if name.isupper()]
    return {word: words for words in lists for word in words}
