"""Batches of prompts on a pool of Ray actors: answers as they come, and a prompt that kills its actor takes none along.

Not Ray Data's pool: that hands a batch over only when the next one is done, in the batches' order, and ends for all of
them where an actor keeps dying.

An actor that dies is replaced, and its batch tried again prompt by prompt, when all the others have been. Batches come
longest first, so that what does not fit shows early; after a death the shortest are next. So whatever can be answered
is, before prompt after prompt that cannot ends the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from data_pipeline.endpoint import Failure
from data_pipeline.errors import UserError
from data_pipeline.plan import Actors

if TYPE_CHECKING:
    from ray.exceptions import RayError

Batch = Sequence[int]
Answers = Sequence[str | dict[str, str]]
Work = Callable[[Mapping[str, Any]], Mapping[str, Any]]

DEATHS_IN_A_ROW = 10
"""Actors of a pool that may die with no answer between, besides one each for all that a lost machine takes along."""


class _Holder:
    """What an actor is: a copy of `work`, in a process of its own."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def answers(self, task: Mapping[str, Any]) -> Answers:
        return list(self._work(task)["answers"])


def answers_from_pool(
    batches: Iterable[Batch], task: Callable[[Batch], Mapping[str, Any]], work: Work, actors: Actors, name: str
) -> Generator[tuple[Batch, Answers]]:
    """Each batch, whole or in parts, with its answers: texts or {reason, message}; in the order they are finished.

    task: what `work` is told of a batch. name: of the model, for messages. A prompt that its actor dies of has the
    reason actor_died; those that are left when too many have died in a row, not_asked. Raises the `UserError`s of
    `work`.
    """
    import ray
    from ray.exceptions import RayError

    start: Any = ray.remote(_Holder).options(num_cpus=actors.cpus, num_gpus=actors.gpus)
    waiting, idle = deque(batches), list[Any]()
    running: dict[Any, tuple[Any, Batch]] = {}
    deaths = in_a_row = 0
    try:
        while waiting or running:
            while waiting and len(running) < actors.count:
                actor = idle.pop() if idle else start.remote(work)
                batch = waiting.pop() if deaths else waiting.popleft()
                running[actor.answers.remote(task(batch))] = actor, batch
            (done,), _ = ray.wait(list(running))
            actor, batch = running.pop(done)
            try:
                answers = ray.get(done)
            except RayError as error:
                ray.kill(actor)
                failure = _death(name, error)
                deaths, in_a_row = deaths + 1, in_a_row + 1
                if len(batch) > 1:
                    waiting.extendleft([row] for row in reversed(batch))
                else:
                    yield batch, [asdict(failure)]
                if in_a_row == DEATHS_IN_A_ROW + actors.count:
                    yield from _not_asked([*waiting, *(batch for _, batch in running.values())], failure)
                    return
            else:
                in_a_row = 0
                idle.append(actor)
                yield batch, answers
                while idle and not waiting:  # an actor that has not yet found room may want this one's
                    ray.kill(idle.pop())
    finally:
        for actor in [*idle, *(actor for actor, _ in running.values())]:
            ray.kill(actor)


def _death(name: str, error: RayError) -> Failure:
    """What became of a prompt. Raises a `UserError` of the work itself."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, UserError):
        raise cause from None
    said = " ".join(str(cause).split())
    detail = said.partition("exit detail: ")[2] or said  # what Ray has to say of it comes after what it is called
    return Failure(
        "actor_died",
        f"a process of {name} died while it answered, of too little memory perhaps: lower max_prompt_tokens, "
        f"max_new_tokens or actors ({detail[:200]})",
    )


def _not_asked(batches: Iterable[Batch], last: Failure) -> Iterator[tuple[Batch, Answers]]:
    failure = asdict(Failure("not_asked", f"not asked, its processes died one after the other: {last.message}"))
    for batch in batches:
        yield batch, [failure] * len(batch)
