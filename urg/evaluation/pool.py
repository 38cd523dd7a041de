"""Answers by a pool of Ray Data actors, each with the models loaded once. Rows travel as indices: every actor maps the
shards itself, so on several nodes shards and models must be on a path that all share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError
from urg.evaluation.answer_store import Answered, answer_of, fields_of
from urg.evaluation.config import EvaluateConfig
from urg.systems import SYSTEMS, Setup, SystemUnavailable
from urg.systems.protocol import Progress, System, silent

if TYPE_CHECKING:
    from urg.evaluation.answering import Load

ROWS_PER_CALL = 32


class Answerer:
    """An actor: answers batches of rows by every system of `names`.

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
            setup = make_setup(config, label, models, names, load, silent, ids)
            self._systems = {name: _built(name, setup) for name in names}
        except UserError as error:
            self._error = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """batch: {"id": indices among the evaluated rows [B]}. Adds a column a system: its answers as JSON [B]."""
        if self._error:
            return {"id": batch["id"], "error": np.array([self._error] * len(batch["id"]), dtype=object)}
        rows = [self._rows[self._places[int(index)]] for index in batch["id"]]
        columns: dict[str, Any] = {"id": batch["id"]}
        for name, system in self._systems.items():
            if isinstance(system, str):
                lines = [json.dumps({"unavailable": system})] * len(rows)
            else:
                lines = [json.dumps({"kind": system.kind} | fields_of(answer)) for answer in system.answer(rows)]
            columns[name] = np.array(lines, dtype=object)
        return columns


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
    import ray
    import ray.data

    from data_pipeline.ray_session import ray_session

    done = 0
    lines: dict[str, list[dict[str, Any]]] = {name: [{}] * count for name in names}
    with ray_session():
        gpus = 1 if str(config.device).startswith("cuda") else 0
        _require_resources(config.workers, gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = max(config.workers, -(-count // ROWS_PER_CALL))
        answered = ray.data.range(count, override_num_blocks=min(count, blocks)).map_batches(
            Answerer,
            fn_constructor_args=(label, tuple(models), names, config, load, tuple(ids)),
            batch_size=ROWS_PER_CALL,
            compute=ray.data.ActorPoolStrategy(size=config.workers),
            num_cpus=1,
            num_gpus=gpus,
        )
        for batch in answered.iter_batches(batch_size=None, batch_format="numpy"):
            if "error" in batch:
                raise UserError(str(batch["error"][0]))
            for name in names:
                for index, line in zip(batch["id"], batch[name], strict=True):
                    lines[name][int(index)] = json.loads(line)
            done += len(batch["id"])
            progress(f"{', '.join(names)} by {config.workers} actors", done, count)
    return _sorted_out(lines)


def _sorted_out(lines: dict[str, list[dict[str, Any]]]) -> tuple[list[Answered], dict[str, str]]:
    """Systems that answered, and the reasons of those that could not run."""
    unavailable = {name: found[0]["unavailable"] for name, found in lines.items() if "unavailable" in found[0]}
    return [
        Answered(name, found[0]["kind"], [answer_of(line) for line in found])
        for name, found in lines.items()
        if name not in unavailable
    ], unavailable


def _require_resources(workers: int, gpus: int) -> None:
    """Raise UserError where this machine can never hold the actors, instead of waiting for ever."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return  # a cluster may scale up
    have = ray.cluster_resources()
    for resource, amount in {"CPU": workers, "GPU": workers * gpus}.items():
        if have.get(resource, 0) < amount:
            raise UserError(
                f"{workers} workers need {amount} {resource}s and this machine has {have.get(resource, 0):.0f}: "
                "lower --workers, or set RAY_ADDRESS to a larger cluster"
            )
