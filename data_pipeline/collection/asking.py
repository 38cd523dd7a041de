"""Putting the prompts to the models: endpoints all at once, local models one after the other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.collection.journal import Journal, request_key
from data_pipeline.collection.progress import Progress
from data_pipeline.collection.prompts import Prompts
from data_pipeline.endpoint import Failure, Messages, ask
from data_pipeline.errors import UserError
from data_pipeline.models import Endpoint, LocalModel, Model, model_key


@dataclass
class Asked:
    """One model and what becomes of every prompt: in the file already (had), in the journal (answered), or missing.

    missing: prompts by reason; examples: a message for each reason.
    """

    model: Model
    key: str
    journal: Journal
    prompts: Prompts
    missing: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.had = sum(self.model.name in models for models in self.prompts.models)
        self.earlier = self.answered

    def is_answered(self, row: int) -> bool:
        """Whether the journal has the row's candidate, and not the file already."""
        return self.journal.has(row) and self.model.name not in self.prompts.models[row]

    @property
    def answered(self) -> int:
        """Prompts that the journal has the candidate of, from this run or an earlier one."""
        return sum(map(self.is_answered, range(len(self.prompts))))

    def pending(self) -> list[int]:
        """The rows that are yet to be asked."""
        models = self.prompts.models
        return [row for row in range(len(models)) if self.model.name not in models[row] and not self.journal.has(row)]

    def take(self, row: int, answer: str | Failure) -> None:
        """Keep an answer, or count why there is none."""
        if isinstance(answer, str):
            self.journal.add(row, request_key(self.key, self.prompts.keys[row]), answer)
        else:
            self.missing[answer.reason] += 1
            self.examples.setdefault(answer.reason, answer.message)


def open_journals(models: Sequence[Model], prompts: Prompts, folder: Path, stack: ExitStack) -> list[Asked]:
    """Each model with its journal in `folder`, which `stack` closes."""
    asked = []
    for model in models:
        key = model_key(model)
        keys = {request_key(key, prompt): row for row, prompt in enumerate(prompts.keys)}
        journal = stack.enter_context(Journal(folder / journal_name(model.name), keys))
        asked.append(Asked(model, key, journal, prompts))
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
    """Have each local model generate for its pending prompts. Ray is started only where there are any."""
    from data_pipeline.ray_session import ray_session

    waiting = [(each, each.model) for each in asked if isinstance(each.model, LocalModel) and each.pending()]
    if not waiting:
        return
    with ray_session():
        for each, model in waiting:
            require_resources(model)
            _ask_local_model(each, model, progress)


def require_resources(model: LocalModel) -> None:
    """Raise `UserError` where this machine could never start the model's actor, which Ray would wait for in silence."""
    import ray

    there = ray.cluster_resources()
    for name, wanted in {"CPU": model.num_cpus, "GPU": model.num_gpus}.items():
        if wanted > there.get(name, 0) and "RAY_ADDRESS" not in os.environ:  # a cluster may grow
            raise UserError(
                f"{model.name} asks for {wanted:g} {name} an actor and there are {there.get(name, 0):g}; lower "
                f"num_{name.lower()}s, or name a cluster by RAY_ADDRESS."
            )


def _ask_local_model(asked: Asked, model: LocalModel, progress: Progress) -> None:
    """Generate in batches of prompts of about the same length, the longest first: what does not fit shows early."""
    from ray.exceptions import RayError

    from data_pipeline.collection.generation import Generation
    from data_pipeline.plan import Actors, on_actors

    lengths = asked.prompts.lengths
    rows = sorted(asked.pending(), key=lambda row: lengths[row], reverse=True)
    tasks = [_task(asked.prompts, rows[at : at + model.batch_size]) for at in range(0, len(rows), model.batch_size)]
    actors = Actors(min(model.actors, len(tasks)), model.num_cpus, model.num_gpus)
    left = iter(rows)
    try:
        for answers in on_actors(tasks, Generation(model, str(asked.prompts.path)), actors):
            for answer in answers["answers"]:
                _take_generated(asked, next(left), answer, progress)
    except RayError as error:
        failure = asdict(Failure("actor_died", f"{model.name}: {' '.join(str(error).split())[:200]}"))
        for row in left:
            _take_generated(asked, row, failure, progress)


def _task(prompts: Prompts, rows: Sequence[int]) -> dict[str, Any]:
    """What an actor needs to know of a batch: where its prompts stand, and which they must be."""
    return {
        "offsets": [prompts.offsets[row] for row in rows],
        "sizes": [prompts.sizes[row] for row in rows],
        "keys": [prompts.keys[row].hex() for row in rows],
    }


def _take_generated(asked: Asked, row: int, answer: str | dict[str, str], progress: Progress) -> None:
    asked.take(row, answer if isinstance(answer, str) else Failure(**answer))
    progress.advance(asked.model.name, not isinstance(answer, str))
