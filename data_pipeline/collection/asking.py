"""Putting the prompts to the models: endpoints all at once, local models one after the other."""

from __future__ import annotations

import asyncio
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.collection.progress import Progress
from data_pipeline.collection.prompts import Prompts
from data_pipeline.endpoint import Failure, Messages, ask
from data_pipeline.journal import Journal
from data_pipeline.models import Endpoint, LocalModel, Model, model_key

if TYPE_CHECKING:
    from data_pipeline.plan import Actors

_NONE = -1


@dataclass
class Asked:
    """One model and what becomes of every prompt: in the file already (had), in the journal (answered), or missing.

    missing: prompts by reason; examples: a message for each reason. unused, damaged: lines of the journal that are of
    other prompts or settings, or unreadable, as it was opened.
    """

    model: Model
    key: str
    journal: Journal
    prompts: Prompts
    missing: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unused: int = 0
    damaged: int = 0

    def __post_init__(self) -> None:
        self.had = sum(self.model.name in models for models in self.prompts.models)
        self._places = array("q", [_NONE]) * len(self.prompts)  # 8 bytes an answer: the texts stay in the journal
        rows = {request_key(self.key, prompt): row for row, prompt in enumerate(self.prompts.keys)}
        for key, place in self.journal.entries():
            row = rows.get(key) if key else None
            self.damaged += key is None
            self.unused += key is not None and row is None
            if row is not None:
                self._places[row] = place
        self.earlier = self.answered

    def is_answered(self, row: int) -> bool:
        """Whether the journal has the row's candidate, and not the file already."""
        return self._places[row] != _NONE and self.model.name not in self.prompts.models[row]

    def text(self, row: int) -> str:
        """The row's answer; `is_answered(row)` must hold."""
        return self.journal.text(self._places[row])

    @property
    def answered(self) -> int:
        """Prompts that the journal has the candidate of, from this run or an earlier one."""
        return sum(map(self.is_answered, range(len(self.prompts))))

    def pending(self) -> list[int]:
        """The rows that are yet to be asked."""
        models = self.prompts.models
        return [row for row, place in enumerate(self._places) if place == _NONE and self.model.name not in models[row]]

    def take(self, row: int, answer: str | Failure) -> None:
        """Keep an answer, or count why there is none."""
        if isinstance(answer, str):
            self._places[row] = self.journal.add(request_key(self.key, self.prompts.keys[row]), answer)
        else:
            self.missing[answer.reason] += 1
            self.examples.setdefault(answer.reason, answer.message)


def request_key(model_key: str, prompt_key: bytes) -> bytes:
    """What one answer belongs to: 16 bytes that stand for the model's settings and the prompt."""
    return hashlib.blake2b(model_key.encode() + prompt_key, digest_size=16).digest()


def open_journals(models: Sequence[Model], prompts: Prompts, folder: Path, stack: ExitStack) -> list[Asked]:
    """Each model with its journal in `folder`, which `stack` closes."""
    asked = []
    for model in models:
        journal = stack.enter_context(Journal(folder / journal_name(model.name)))
        asked.append(Asked(model, model_key(model), journal, prompts))
    return asked


def journal_name(name: str) -> str:
    """A file name for a model's name, which may hold any character; different for different names."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:80]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"


def ask_endpoints(asked: Sequence[Asked], progress: Progress) -> None:
    """Put its pending prompts to each endpoint, all endpoints at once."""

    async def all_at_once() -> None:
        endpoints = [(each, each.model) for each in asked if isinstance(each.model, Endpoint)]
        await asyncio.gather(*(_ask_endpoint(each, model, progress) for each, model in endpoints))

    asyncio.run(all_at_once())


async def _ask_endpoint(asked: Asked, endpoint: Endpoint, progress: Progress) -> None:
    rows = asked.pending()

    def questions() -> Iterator[tuple[int, Messages]]:
        for row, prompt in zip(rows, asked.prompts.read(rows), strict=True):
            yield row, endpoint.messages(prompt.example.instruction, prompt.example.input)

    async with aclosing(ask(endpoint, questions())) as answers:
        async for row, answer in answers:
            asked.take(row, answer)
            progress.advance(endpoint.name, isinstance(answer, Failure))


def ask_local_models(asked: Sequence[Asked], progress: Progress) -> None:
    """Have each local model generate for its pending prompts. Ray is started only where there are any.

    Raises `UserError` where this machine could never start a model's actors.
    """
    from data_pipeline.plan import Actors, require_room
    from data_pipeline.ray_session import ray_session

    waiting = [(each, each.model) for each in asked if isinstance(each.model, LocalModel) and each.pending()]
    if not waiting:
        return
    with ray_session():
        pools = [Actors(model.actors, model.num_cpus, model.num_gpus) for _, model in waiting]
        for (_, model), actors in zip(waiting, pools, strict=True):
            require_room(actors, f"One actor of {model.name}")
        for (each, model), actors in zip(waiting, pools, strict=True):
            _ask_local_model(each, model, actors, progress)


def _ask_local_model(asked: Asked, model: LocalModel, actors: Actors, progress: Progress) -> None:
    """Generate in batches of prompts of about the same length."""
    from data_pipeline.collection.generation import Generation
    from data_pipeline.collection.pool import answers_from_pool

    prompts, size = asked.prompts, model.batch_size
    rows = sorted(asked.pending(), key=lambda row: prompts.lengths[row], reverse=True)
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    work = Generation(model, str(prompts.path))
    pool = answers_from_pool(batches, lambda batch: _task(prompts, batch), work, actors, model.name)
    with closing(pool):
        for batch, answers in pool:
            for row, answer in zip(batch, answers, strict=True):
                asked.take(row, answer if isinstance(answer, str) else Failure(**answer))
                progress.advance(model.name, not isinstance(answer, str))


def _task(prompts: Prompts, rows: Sequence[int]) -> dict[str, Any]:
    """What an actor needs to know of a batch: where its prompts stand, and which they must be."""
    return {
        "offsets": [prompts.offsets[row] for row in rows],
        "sizes": [prompts.sizes[row] for row in rows],
        "keys": [prompts.keys[row].hex() for row in rows],
    }
