"""The kinds of instruction whose answer is a list: put items in order, and pick those that satisfy a condition."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from data_pipeline.sample.tasks import Part, Task
from data_pipeline.sample.words import COLOURS, NAMES, ORDINALS, THINGS, TOWNS


def order(rng: Random) -> Task:
    """Names or towns to put in order: by a given place, by a number, or by the alphabet."""
    by = rng.choice(["place", "place", "number", "number", "alphabet"])
    # One item a letter: to compare first letters is enough.
    words = rng.choice([NAMES, TOWNS])
    by_letter = {item[0]: item for item in rng.sample(words, len(words))}
    items = rng.sample(list(by_letter.values()), rng.choice([4, 5]))
    ranked = sorted(items) if by == "alphabet" else rng.sample(items, len(items))
    numbers = sorted(rng.sample(range(1, 10), len(items)))
    labels = {"place": ORDINALS, "number": [str(number) for number in numbers], "alphabet": [""] * len(items)}[by]
    context = ", ".join(f"{item} {labels[ranked.index(item)]}".strip() for item in items) + "."
    # A value is its place in the list and the item; a wrong place sets the item elsewhere.
    places = [i - 0.5 for i in range(len(ranked) + 1)]
    parts = tuple(
        Part(f"{i} {item}", tuple(f"{p} {item}" for p in places if abs(p - i) > 1)) for i, item in enumerate(ranked)
    )
    return Task(rng.choice(_ORDER_REQUESTS[by]), context, parts, _word_order)


_ORDER_REQUESTS = {
    "place": ("Put them in order, the first one first.", "List them by place.", "Sort them by their place."),
    "number": (
        "Sort them by number, lowest first.",
        "List them from the lowest number up.",
        "Order them by rising number.",
    ),
    "alphabet": ("Sort them by the alphabet.", "Put them in alphabetical order.", "List them from A to Z."),
}


def _word_order(values: Sequence[str], wording: str) -> list[str]:
    ranked = sorted((value for value in values if value), key=lambda value: float(value.split()[0]))
    items = [value.split()[1] for value in ranked]
    if wording == "brief":
        return [" ".join(items)]
    listed = ", ".join(items) + "."
    return [f"In order: {listed}" if wording == "wordy" else listed]


def select(rng: Random) -> Task:
    """Things or people that satisfy a condition; each item is a part: take it or leave it."""
    of_things = rng.random() < 0.5
    items = rng.sample(THINGS if of_things else NAMES, rng.choice([5, 6]))
    wanted, *rest = rng.sample(COLOURS if of_things else TOWNS, 3)
    count = rng.choice([2, 3])
    marks = rng.sample([wanted] * count + [rng.choice(rest) for _ in items[count:]], len(items))
    facts = [f"{m} {i}" if of_things else f"{i} in {m}" for i, m in zip(items, marks, strict=True)]
    parts = tuple(Part(i, ("",)) if m == wanted else Part("", (i,)) for i, m in zip(items, marks, strict=True))

    def word(values: Sequence[str], wording: str) -> list[str]:
        taken = [value for value in values if value]
        listed = " and ".join(filter(None, [", ".join(taken[:-1]), *taken[-1:]])) or "nothing"
        return [_SELECT_WORDS[of_things][wording].format(mark=wanted, items=listed)]

    request = rng.choice(_SELECT_REQUESTS[of_things]).format(wanted)
    return Task(request, ", ".join(facts) + ".", parts, word)


_SELECT_REQUESTS = {
    True: ("Which things are {}?", "List the things that are {}.", "What is {} here?", "Pick all that is {}."),
    False: ("Who is in {}?", "List the people in {}.", "Which people are in {}?", "Name everyone in {}."),
}
_SELECT_WORDS = {
    True: {
        "plain": "The {mark} things: {items}.",
        "brief": "The {mark}: {items}.",
        "wordy": "These things are {mark}: {items}.",
    },
    False: {"plain": "In {mark}: {items}.", "brief": "{mark}: {items}.", "wordy": "The people in {mark}: {items}."},
}
