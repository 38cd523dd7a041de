"""What a question of the generated corpus is, and the kinds whose answer is a sentence for each part.

A kind is a function from a random generator to a `Task`: facts drawn afresh, a request, and the computable answer. The
reference is the right values in the "plain" wording; a simulated model may word them otherwise and get any of the parts
wrong, each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from data_pipeline.sample.words import (
    COLOURS,
    COUNTED,
    DAYS,
    EVENTS,
    JOBS,
    NAMES,
    NUMBERS,
    PETS,
    PLACES,
    SIDES,
    THINGS,
    TOWNS,
)

WORDINGS = ("plain", "brief", "wordy")


@dataclass(frozen=True)
class Part:
    """One part of an answer that can be right or wrong by itself."""

    right: str
    wrong: tuple[str, ...]
    """Values a model may take by mistake: most from elsewhere in the context, some from the word lists."""


@dataclass(frozen=True)
class Task:
    """A question and what is needed to word right and wrong answers to it."""

    request: str
    """What is asked, such as "Where does Nora live?"."""
    context: str
    """The facts to answer from."""
    parts: tuple[Part, ...]
    word: Callable[[Sequence[str], str], list[str]]
    """Sentences that give one value a part ("" = left out) in one of `WORDINGS`."""

    def reference(self) -> str:
        """The right answer, in the one wording that all references have."""
        return " ".join(self.word([part.right for part in self.parts], "plain"))


def _others(rng: Random, right: str, near: Sequence[str], far: Sequence[str]) -> tuple[str, ...]:
    """Wrong values for `right`: all the `near` ones (of the context) and one from the list `far`."""
    chosen = [value for value in near if value != right]
    strays = [value for value in far if value != right and value not in chosen]
    return (*chosen, *rng.sample(strays, min(len(strays), 1)))


def _clauses(templates: Sequence[dict[str, str]]) -> Callable[[Sequence[str], str], list[str]]:
    """A sentence a part: its template for the wording, with the part's value in it; none for a part left out."""

    def word(values: Sequence[str], wording: str) -> list[str]:
        pairs = zip(templates, values, strict=True)
        return [template[wording].format(value) for template, value in pairs if value]

    return word


def lookup(rng: Random) -> Task:
    """Who has what, and who lives where: two or three questions on three people."""
    names, towns = rng.sample(NAMES, 3), rng.sample(TOWNS, 3)
    things = [f"{colour} {thing}" for colour, thing in zip(rng.sample(COLOURS, 3), rng.sample(THINGS, 3), strict=True)]
    line = rng.choice(
        ["{} has the {} and lives in {}.", "{}: {}, {}.", "{} from {town} has the {thing}.", "{} ({}, {})."]
    )
    facts = zip(names, things, towns, strict=True)
    context = " ".join(line.format(n, t, w, thing=t, town=w) for n, t, w in facts)
    asked = rng.sample([(who, what) for who in range(3) for what in ("thing", "town")], rng.choice([2, 3, 3]))
    questions, parts, templates = [], [], []
    for who, what in asked:
        questions.append(rng.choice(_LOOKUP_QUESTIONS[what]).format(names[who]))
        if what == "town":
            parts.append(Part(towns[who], _others(rng, towns[who], towns, TOWNS)))
        else:
            far = [f"{rng.choice(COLOURS)} {rng.choice(THINGS)}" for _ in range(3)]
            parts.append(Part(things[who], _others(rng, things[who], things, far)))
        templates.append({key: text.replace("NAME", names[who]) for key, text in _LOOKUP_WORDS[what].items()})
    request = rng.choice(["", "", "Answer briefly. ", "Read the text. "]) + " ".join(questions)
    return Task(request, context, tuple(parts), _clauses(templates))


_LOOKUP_QUESTIONS = {
    "thing": ("What does {} have?", "What is owned by {}?", "Which thing does {} have?"),
    "town": ("Where does {} live?", "In which town is {}?", "Where is the home of {}?"),
}
_LOOKUP_WORDS = {
    "thing": {"plain": "NAME has the {}.", "brief": "NAME: the {}.", "wordy": "NAME has got the {}."},
    "town": {"plain": "NAME lives in {}.", "brief": "NAME: {}.", "wordy": "NAME is living in {}."},
}


def moves(rng: Random) -> Task:
    """Things that were carried from one place to another: where each is now, or was."""
    things = rng.sample(THINGS, 2)
    places = [f"{side} {place}" for side, place in zip(rng.sample(SIDES, 4), rng.sample(PLACES, 4), strict=True)]
    line = rng.choice(["The {} went from the {} to the {}.", "The {} left the {} for the {}.", "The {}: {} to {}."])
    context = " ".join(line.format(thing, *places[2 * i : 2 * i + 2]) for i, thing in enumerate(things))
    asked = rng.sample([(i, when) for i in (0, 1) for when in (0, 1)], rng.choice([2, 2, 3]))
    questions, parts, templates = [], [], []
    for i, when in asked:
        place = places[2 * i + when]
        # The other end of the same way is the mistake that is easiest to make.
        wrong = _others(rng, place, [places[2 * i + 1 - when], *places], [f"{rng.choice(SIDES)} {rng.choice(PLACES)}"])
        questions.append(rng.choice(_MOVES_QUESTIONS[when]).format(things[i]))
        parts.append(Part(place, wrong))
        templates.append({key: text.replace("THING", things[i]) for key, text in _MOVES_WORDS[when].items()})
    return Task(" ".join(questions), context, tuple(parts), _clauses(templates))


_MOVES_QUESTIONS = (
    ("Where was the {} before?", "Where did the {} come from?", "Where was the {} at first?"),
    ("Where is the {} now?", "Where did the {} go?", "Where can I find the {}?"),
)
_MOVES_WORDS = (
    {"plain": "The THING was in the {}.", "brief": "The THING: the {}.", "wordy": "Before, the THING was in the {}."},
    {"plain": "The THING is in the {}.", "brief": "The THING: the {}.", "wordy": "Now the THING is in the {}."},
)


def sums(rng: Random) -> Task:
    """Small sums in words: what two or three people have after getting or losing some."""
    names, things = rng.sample(NAMES, rng.choice([2, 3])), rng.choice(COUNTED)
    lines, parts, templates = [], [], []
    for name in names:
        start, change = rng.randint(2, 9), rng.randint(1, 6)
        # Never one or none of them: "one books" would be poor English.
        gains = rng.random() < 0.6 or start - change < 2
        result = start + change if gains else start - change
        verb = rng.choice(["gets", "finds", "buys"] if gains else ["loses", "sells"])
        lines.append(f"{name} has {NUMBERS[start]} {things} and {verb} {NUMBERS[change]}.")
        wrong = {start - change if gains else start + change, start, result - 1, result + 1} - {result}
        parts.append(Part(NUMBERS[result], tuple(NUMBERS[number] for number in sorted(wrong) if number > 1)))
        words = {"plain": "{} has {{}} {}.", "brief": "{}: {{}} {}.", "wordy": "{} now has {{}} {}."}
        templates.append({key: text.format(name, things) for key, text in words.items()})
    request = rng.choice(
        [
            "How many {} does each of them have now?",
            "Count the {} of each person.",
            "Say how many {} each one has in the end.",
        ]
    )
    return Task(request.format(things), " ".join(lines), tuple(parts), _clauses(templates))


def notes(rng: Random) -> Task:
    """Notes to turn into sentences: two people, or one event."""
    return _event_notes(rng) if rng.random() < 0.4 else _people_notes(rng)


def _people_notes(rng: Random) -> Task:
    names, jobs, towns, pets = (rng.sample(words, 2) for words in (NAMES, JOBS, TOWNS, PETS))
    line = rng.choice(["{}: {}, {}, {}.", "{} - {} - {} - {}.", "name {}, job {}, town {}, pet {}."])
    context = " ".join(line.format(*facts) for facts in zip(names, jobs, towns, pets, strict=True))
    parts = []
    for i in range(2):
        for values, words in ((jobs, JOBS), (towns, TOWNS), (pets, PETS)):
            parts.append(Part(values[i], _others(rng, values[i], values, words)))

    def word(values: Sequence[str], wording: str) -> list[str]:
        joints = _PEOPLE_WORDS[wording]
        sentences = []
        for name, facts in zip(names, (values[:3], values[3:]), strict=True):
            told = [joint.format(fact) for joint, fact in zip(joints, facts, strict=True) if fact]
            sentences.append(f"{name}{''.join(told)}.")
        return sentences

    request = rng.choice(
        [
            "Turn the notes into sentences.",
            "Write a sentence about each person.",
            "Introduce these two people in full sentences.",
        ]
    )
    return Task(request, context, tuple(parts), word)


_PEOPLE_WORDS = {
    "plain": (" is a {}", " from {}", " with a {}"),
    "brief": (", a {}", ", from {}", ", with a {}"),
    "wordy": (" is working as a {}", " from {}", " and has a {}"),
}


def _event_notes(rng: Random) -> Task:
    lists = (EVENTS, PLACES, DAYS, NAMES)
    right = [rng.choice(words) for words in lists]
    notes = [f"{label}: {value}" for label, value in zip(("what", "where", "when", "who"), right, strict=True)]
    context = "; ".join(rng.sample(notes, 4)) + "."
    parts = tuple(
        Part(value, tuple(rng.sample([w for w in words if w != value], 2)))
        for value, words in zip(right, lists, strict=True)
    )

    def word(values: Sequence[str], wording: str) -> list[str]:
        told = [joint.format(value) for joint, value in zip(_EVENT_WORDS[wording], values, strict=True) if value]
        return [" ".join(told).rstrip(",") + "."]

    request = rng.choice(
        ["Write one sentence from the notes.", "Announce this event in one sentence.", "Put the notes into a sentence."]
    )
    return Task(request, context, parts, word)


_EVENT_WORDS = {
    "plain": ("The {}", "at the {}", "on {}", "is led by {}"),
    "brief": ("The {},", "the {},", "{},", "led by {}"),
    "wordy": ("There is the {}", "at the {}", "on {}", "and it is led by {}"),
}
