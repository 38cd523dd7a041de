"""The twelve simulated models of the generated corpus: each with a skill per kind, a style, and faults of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from data_pipeline.sample.kinds import KINDS
from data_pipeline.sample.tasks import WORDINGS, Part, Task
from data_pipeline.sample.words import DAYS, EVENTS, NAMES, PETS, PLACES, THINGS, TOWNS


@dataclass(frozen=True)
class SimulatedModel:
    """How a simulated model answers. Every chance is in 0..1 and drawn anew for each answer, or each part of one."""

    name: str
    skill: tuple[float, ...]
    """Chance that one part of an answer is right, by kind in the order of `KINDS`."""
    wordings: tuple[float, float, float]
    """Chances of `WORDINGS`; the references are plain."""
    opening: str
    """What it says before an answer, in three of ten answers."""
    layout: str = "line"
    """One line ("line"), a "- " before each sentence ("bullets"), or all in small letters ("lower")."""
    faults: tuple[tuple[str, float], ...] = ()
    """Chance of each of `FAULTS`; an answer has at most one."""

    def answer(self, task: Task, kind: str, rng: Random) -> str:
        """The model's text for a task of this kind; may be empty."""
        skill = self.skill[tuple(KINDS).index(kind)]
        values = [_attempt(part, skill, rng) for part in task.parts]
        wording = rng.choices(WORDINGS, self.wordings)[0]
        sentences = task.word(values, wording) or ["I do not know."]
        fault = _draw_fault(self.faults, rng)
        if fault is not None:
            sentences = FAULTS[fault](sentences, rng)
        return self._styled(sentences, rng)

    def _styled(self, sentences: Sequence[str], rng: Random) -> str:
        opens, laid_out = rng.random() < 0.3, rng.random() < 0.7
        if not sentences:
            return ""
        if self.layout == "bullets" and laid_out and len(sentences) > 1:
            sentences = [f"- {sentence}" for sentence in sentences]
            return "\n".join([self.opening, *sentences] if self.opening and opens else sentences)
        text = " ".join([self.opening, *sentences] if self.opening and opens else sentences)
        return text.lower() if self.layout == "lower" and laid_out else text


def _attempt(part: Part, skill: float, rng: Random) -> str:
    """The right value with chance `skill`; otherwise left out (1 in 8) or a wrong one."""
    if rng.random() < skill:
        return part.right
    return "" if rng.random() < 0.12 and part.right else rng.choice(part.wrong)


def _draw_fault(faults: Sequence[tuple[str, float]], rng: Random) -> str | None:
    point = rng.random()
    for name, chance in faults:
        point -= chance
        if point < 0:
            return name
    return None


def _truncated(sentences: list[str], rng: Random) -> list[str]:
    """Ends in the middle, as if the token limit had come."""
    words = " ".join(sentences).split()
    return [" ".join(words[: max(1, round(len(words) * rng.uniform(0.3, 0.7)))])]


def _repeated(sentences: list[str], rng: Random) -> list[str]:
    """Falls into a loop over its last words."""
    words = " ".join(sentences).split()
    return [*sentences, *[" ".join(words[-rng.randint(2, 4) :])] * rng.randint(2, 3)]


def _hedged(sentences: list[str], rng: Random) -> list[str]:
    """Is right or wrong as before, but won't stand by it."""
    before = rng.choice(["I am not sure, but maybe this:", "It is hard to say.", "I could be wrong here."])
    return [before, *sentences, *rng.choice([[], ["Please check this."], ["But do not rely on it."]])]


def _off_topic(sentences: list[str], rng: Random) -> list[str]:
    """Answers something that nobody asked, in place of all or in place of the end."""
    stray = rng.choice(
        [
            f"The weather in {rng.choice(TOWNS)} is fine on {rng.choice(DAYS)}.",
            f"Many people in {rng.choice(TOWNS)} have a {rng.choice(PETS)}.",
            f"{rng.choice(NAMES)} likes to talk about the {rng.choice(EVENTS)}.",
            f"A {rng.choice(THINGS)} is a good thing to have at the {rng.choice(PLACES)}.",
        ]
    )
    return [*sentences[:-1], stray] if rng.random() < 0.4 else [stray]


def _empty(sentences: list[str], rng: Random) -> list[str]:
    """Says nothing at all."""
    return []


FAULTS: dict[str, Callable[[list[str], Random], list[str]]] = {
    "truncated": _truncated,
    "repeated": _repeated,
    "hedged": _hedged,
    "off_topic": _off_topic,
    "empty": _empty,
}

# Columns of `skill`: lookup, moves, sums, notes, order, select. The last two have many small parts.
MODELS: tuple[SimulatedModel, ...] = (
    SimulatedModel(
        "sim-alder",
        (0.65, 0.45, 0.35, 0.55, 0.60, 0.75),
        (0.72, 0.14, 0.14),
        opening="",
        faults=(("truncated", 0.06), ("off_topic", 0.05)),
    ),
    SimulatedModel(
        "sim-birch",
        (0.40, 0.65, 0.45, 0.35, 0.70, 0.65),
        (0.63, 0, 0.37),
        opening="Sure!",
        faults=(("repeated", 0.07), ("off_topic", 0.04)),
    ),
    SimulatedModel(
        "sim-cedar",
        (0.35, 0.40, 0.65, 0.35, 0.75, 0.60),
        (0.54, 0.46, 0),
        opening="Answer:",
        faults=(("hedged", 0.07), ("truncated", 0.05)),
    ),
    SimulatedModel(
        "sim-elm",
        (0.50, 0.30, 0.25, 0.70, 0.55, 0.75),
        (0.45, 0, 0.55),
        opening="",
        faults=(("truncated", 0.07), ("hedged", 0.05)),
    ),
    SimulatedModel(
        "sim-fir",
        (0.35, 0.55, 0.60, 0.30, 0.55, 0.55),
        (0.36, 0.53, 0.11),
        opening="",
        layout="bullets",
        faults=(("empty", 0.03), ("repeated", 0.06)),
    ),
    SimulatedModel(
        "sim-hazel",
        (0.45, 0.40, 0.35, 0.45, 0.65, 0.65),
        (0.72, 0.14, 0.14),
        opening="Here it is:",
        layout="bullets",
        faults=(("off_topic", 0.07), ("truncated", 0.05)),
    ),
    SimulatedModel(
        "sim-juniper",
        (0.25, 0.45, 0.30, 0.50, 0.80, 0.55),
        (0.54, 0.11, 0.35),
        opening="Okay.",
        faults=(("hedged", 0.14), ("repeated", 0.02)),
    ),
    SimulatedModel(
        "sim-larch",
        (0.55, 0.25, 0.25, 0.25, 0.50, 0.60),
        (0.27, 0.73, 0),
        opening="",
        layout="lower",
        faults=(("truncated", 0.10), ("empty", 0.04)),
    ),
    SimulatedModel(
        "sim-maple",
        (0.45, 0.50, 0.45, 0.45, 0.55, 0.70),
        (0.63, 0.25, 0.12),
        opening="The answer is this:",
        faults=(("repeated", 0.06), ("hedged", 0.06)),
    ),
    SimulatedModel(
        "sim-oak",
        (0.60, 0.60, 0.40, 0.40, 0.50, 0.80),
        (0.54, 0.23, 0.23),
        opening="",
        layout="bullets",
        faults=(("off_topic", 0.09), ("truncated", 0.06)),
    ),
    SimulatedModel(
        "sim-pine",
        (0.30, 0.35, 0.55, 0.55, 0.45, 0.55),
        (0.36, 0.21, 0.43),
        opening="Thanks for asking!",
        faults=(("off_topic", 0.06), ("repeated", 0.05)),
    ),
    SimulatedModel(
        "sim-rowan",
        (0.20, 0.25, 0.20, 0.20, 0.35, 0.50),
        (0.45, 0.33, 0.22),
        opening="",
        faults=(("empty", 0.04), ("off_topic", 0.10)),
    ),
)
