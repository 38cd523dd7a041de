"""A language model behind an OpenAI-compatible endpoint: as a judge that ranks the candidates (`judge_rank`), and as a
fuser that aggregates and synthesizes them (`judge_fuse`).

The endpoint is described by a YAML file with the fields of `data_pipeline.models.Endpoint`. Candidates are shown in an
order drawn by row, since judges favour places. A row whose question fails, or whose answer is no ranking, has no answer
of the system; `failures` says why, and a line about them is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.tokenization import question_text
from urg.systems.folder import named_folder
from urg.systems.protocol import Answer, Kind, Progress, Ranked, Scores, Setup
from urg.systems.random import RandomScores

if TYPE_CHECKING:
    from data_pipeline.models import Endpoint
    from data_pipeline.shards import TokenizedExample

RANK_REQUEST = """Below are a question and {count} numbered answers to it. Judge which answers are better: correct, \
helpful, complete, and no longer than they need be. An answer's number and place mean nothing.

Question:
{question}

{answers}

Reply with one line only: the numbers of all answers, best first, separated by commas."""

FUSE_REQUEST = """Below are a question and {count} answers to it by different models. Some may be wrong, biased or \
incomplete. Weigh them critically, and write the single best answer to the question: correct, complete, well put. \
Reply with that answer only, without a word about the answers you were given.

Question:
{question}

{answers}"""

Value = TypeVar("Value")


@dataclass
class Asker:
    """Puts one question a row to the endpoint and reads what comes back."""

    endpoint: Endpoint
    seed: int
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)
    """Why a row has no answer, by id."""

    def order(self, row: TokenizedExample) -> list[int]:
        """The order in which the row's candidates are shown."""
        return [int(i) for i in np.argsort(RandomScores(self.seed).scores(row))]

    def ask(
        self, what: str, rows: Sequence[TokenizedExample], request: str, read: Callable[[TokenizedExample, str], Value]
    ) -> list[Value | None]:
        """What `read` makes of the answer about each row; None where there is none, or where it raises ValueError.

        Raises UserError where not one row got an answer.
        """
        from data_pipeline.endpoint import Failure, ask_each

        found: dict[int, Value] = {}
        questions = ((r, self.endpoint.messages(self._shown(row, request))) for r, row in enumerate(rows))
        for done, (r, answer) in enumerate(ask_each(self.endpoint, questions), start=1):
            try:
                if isinstance(answer, Failure):
                    raise ValueError(answer.message)
                found[r] = read(rows[r], answer)
            except ValueError as error:
                self.failures[rows[r].id] = str(error)
            self.progress(f"{self.endpoint.name} {what}", done, len(rows))
        self._report(rows, what)
        return [found.get(r) for r in range(len(rows))]

    def _shown(self, row: TokenizedExample, request: str) -> str:
        answers = [f"Answer {place}:\n{row.texts[i]}" for place, i in enumerate(self.order(row), start=1)]
        places = {
            "count": str(len(answers)),
            "question": question_text(row.instruction, row.input),
            "answers": "\n\n".join(answers),
        }
        return re.sub(r"\{(count|question|answers)\}", lambda place: places[place[1]], request)

    def _report(self, rows: Sequence[TokenizedExample], what: str) -> None:
        failed = [row.id for row in rows if row.id in self.failures]
        if not failed:
            return
        reason = f"{len(failed)} of {len(rows)} rows have none, such as {failed[0]}: {self.failures[failed[0]]}"
        if len(failed) == len(rows):
            raise UserError(f"{self.endpoint.name} gave no answer that can be used: {reason}")
        self.progress(f"{self.endpoint.name} {what}: {reason}", len(rows), len(rows))


@dataclass(frozen=True)
class Judge:
    """Ranks by asking for an order."""

    asker: Asker

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        """N for the best, and so on down to 1; 0 for candidates that the judge left out. A lone candidate needs no
        judge."""
        several = [row for row in rows if len(row.texts) > 1]
        found = iter(self.asker.ask("ranks", several, RANK_REQUEST, self._scores) if several else [])
        return [next(found) if len(row.texts) > 1 else np.ones(1) for row in rows]

    def _scores(self, row: TokenizedExample, answer: str) -> Scores:
        order = self.asker.order(row)
        scores = np.zeros(len(order))
        for place, number in enumerate(read_order(answer, len(order))):
            scores[order[number - 1]] = len(order) - place
        return scores


@dataclass(frozen=True)
class Synthesizer:
    """Answers with a text that the model writes from all candidates of a row."""

    name: str
    asker: Asker
    kind: Kind = "fuser"

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """The model's texts."""
        return self.asker.ask("fuses", rows, FUSE_REQUEST, self._answer)

    def _answer(self, row: TokenizedExample, text: str) -> Answer:
        if not text.strip():
            raise ValueError("its answer is empty")
        return Answer(text.strip(), used=tuple(range(len(row.texts))))


def read_order(answer: str, count: int) -> list[int]:
    """The numbers 1..count of the last line that has any, best first. ValueError where they are no order."""
    lines = [re.findall(r"\d+", line) for line in answer.splitlines()]
    numbers = [int(number) for number in next((line for line in reversed(lines) if line), [])]
    if not numbers or len(set(numbers)) < len(numbers) or not all(1 <= number <= count for number in numbers):
        raise ValueError(f"its answer is no order of {count} answers: {' '.join(answer.split())[:80]!r}")
    return numbers


def load_endpoint(file: str | Path) -> Endpoint:
    """The endpoint that a YAML file describes. Raises UserError."""
    import yaml

    from data_pipeline.models import Endpoint

    try:
        content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the endpoint file {file} cannot be read ({type(error).__name__}): give YAML.") from error
    try:
        return Endpoint(**content)
    except TypeError as error:  # no mapping, or fields that are missing or unknown
        raise UserError(
            f"{file} does not describe an endpoint ({error}): give name, base_url, model, and api_key_env where a key "
            "is needed."
        ) from error


def judge_rank(setup: Setup) -> Ranked:
    """The candidate that the judge puts first."""
    return Ranked("judge_rank", "ranker", Judge(_asker(setup)))


def judge_fuse(setup: Setup) -> Synthesizer:
    """The text that the model writes from all candidates."""
    return Synthesizer("judge_fuse", _asker(setup))


def _asker(setup: Setup) -> Asker:
    return Asker(load_endpoint(named_folder(setup, "judge")), setup.seed, setup.progress)
