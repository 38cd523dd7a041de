"""Answers by a pool of Ray Data actors, each with the models loaded once. Rows travel as indices: every actor maps the
shards itself, so on several nodes shards and models must be on a path that all share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.ray_session import on_cluster
from urg.evaluation.answer_store import Answered, answer_of, fields_of
from urg.evaluation.config import EvaluateConfig
from urg.systems import SYSTEMS, Setup, SystemUnavailable
from urg.systems.protocol import Progress, System, silent

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.evaluation.answering import Load

ROWS_PER_CALL = 32


class Answerer:
    """An actor: answers batches of rows by every system of `names`. Other work on rows overrides `prepare`, `lines`.

    What a user can mend comes back as data, in a column "error": Ray would start an actor that raises again and again.
    """

    def __init__(
        self,
        label: str,
        models: Sequence[str],
        names: tuple[str, ...],
        config: EvaluateConfig,
        load: Load,
        ids: Sequence[str],
    ) -> None:
        from data_pipeline.shards import ShardSet
        from urg.evaluation.answering import make_setup
        from urg.evaluation.subject import places

        self._error: str | None = None
        self._systems: dict[str, System | str] = {}
        try:
            self._rows = ShardSet.open(config.shards, verify=False).split(config.split)
            self._places = places(self._rows, config)
            self._label, self._config = label, config
            self.prepare(make_setup(config, label, models, names, load, silent, ids), names)
        except UserError as error:
            self._error = str(error)

    def prepare(self, setup: Setup, names: Sequence[str]) -> None:
        """Load what answers."""
        self._systems = {name: _built(name, setup) for name in names}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """batch: {"id": indices among the evaluated rows [B]}. Adds the columns of `lines` [B]."""
        if self._error:
            return {"id": batch["id"], "error": np.array([self._error] * len(batch["id"]), dtype=object)}
        rows = [self._rows[self._places[int(index)]] for index in batch["id"]]
        found = self.lines(rows)
        return {"id": batch["id"]} | {
            name: np.array([json.dumps(line) for line in own], dtype=object) for name, own in found.items()
        }

    def lines(self, rows: Sequence[TokenizedExample]) -> dict[str, list[dict[str, Any]]]:
        """A column a system: its answers, or why it cannot run."""
        return {
            name: [{"unavailable": system}] * len(rows)
            if isinstance(system, str)
            else [{"kind": system.kind} | fields_of(answer) for answer in system.answer(rows)]
            for name, system in self._systems.items()
        }


def _built(name: str, setup: Setup) -> System | str:
    """The system, or why it cannot run."""
    try:
        return SYSTEMS[name](setup)
    except SystemUnavailable as reason:
        return str(reason)


def answer_in_pool(
    count: int,
    ids: Sequence[str],
    label: str,
    models: Sequence[str],
    names: tuple[str, ...],
    config: EvaluateConfig,
    load: Load,
    progress: Progress,
) -> tuple[list[Answered], dict[str, str]]:
    """The answers of the systems `names` to the `count` rows that `config` names; why others could not run. ids: of all
    rows, those of other parts included."""
    made = (label, tuple(models), names, config, load, tuple(ids))
    return _sorted_out(lines_of_pool(Answerer, made, count, config, progress, ", ".join(names)))


def lines_of_pool(
    answerer: type[Answerer], made: tuple[Any, ...], count: int, config: EvaluateConfig, progress: Progress, what: str
) -> dict[str, list[dict[str, Any]]]:
    """Column → a line for each of the `count` rows that `config` names, by `config.workers` actors. made: the arguments
    of an `answerer`. what: the work, for `progress`. Raises the UserError that an actor met."""
    import ray
    import ray.data

    from data_pipeline.ray_session import ray_session

    done = 0
    lines: dict[str, list[dict[str, Any]]] = {}
    with ray_session():
        gpus = 1 if str(config.device).startswith("cuda") else 0
        require_resources(config.workers, gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = max(config.workers, -(-count // ROWS_PER_CALL))
        answered = ray.data.range(count, override_num_blocks=min(count, blocks)).map_batches(
            answerer,
            fn_constructor_args=made,
            batch_size=ROWS_PER_CALL,
            compute=ray.data.ActorPoolStrategy(size=config.workers),
            num_cpus=1,
            num_gpus=gpus,
        )
        for batch in answered.iter_batches(batch_size=None, batch_format="numpy"):
            if "error" in batch:
                raise UserError(str(batch["error"][0]))
            for name in batch.keys() - {"id"}:
                own = lines.setdefault(name, [{}] * count)
                for index, line in zip(batch["id"], batch[name], strict=True):
                    own[int(index)] = json.loads(line)
            done += len(batch["id"])
            progress(f"{what} by {config.workers} actors", done, count)
    return lines


def _sorted_out(lines: dict[str, list[dict[str, Any]]]) -> tuple[list[Answered], dict[str, str]]:
    """Systems that answered, and the reasons of those that could not run."""
    unavailable = {name: found[0]["unavailable"] for name, found in lines.items() if "unavailable" in found[0]}
    return [
        Answered(name, found[0]["kind"], [answer_of(line) for line in found])
        for name, found in lines.items()
        if name not in unavailable
    ], unavailable


def require_resources(workers: int, gpus: int) -> None:
    """Raise UserError where this machine can never hold the actors, instead of waiting for ever."""
    import ray

    if on_cluster():
        return  # a cluster may scale up
    have = ray.cluster_resources()
    for resource, amount in {"CPU": workers, "GPU": workers * gpus}.items():
        if have.get(resource, 0) < amount:
            raise UserError(
                f"{workers} workers need {amount} {resource}s and this machine has {have.get(resource, 0):.0f}: "
                "lower --workers, or set RAY_ADDRESS to a larger cluster"
            )
