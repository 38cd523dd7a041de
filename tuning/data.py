"""The prepared shards of a sweep: pinned or made once, and what they say of a trial's length."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from tuning.blueprint import Blueprint

if TYPE_CHECKING:
    from tuning.space import Point
    from urg.config import TrainConfig

_SETS: dict[str, str] = {}
"""Folders of the sets that this process has seen whole, by their preparation."""


def pinned(blueprint: Blueprint) -> Blueprint:
    """With the base's shards by their own folder: a later `prepare` under the same root must not change a sweep."""
    from data_pipeline.shards import ShardSet

    if blueprint.prepare is not None:
        return blueprint
    folder = str(ShardSet.open(blueprint.base.data.shards, verify=False).folder)
    base = dataclasses.replace(blueprint.base, data=dataclasses.replace(blueprint.base.data, shards=folder))
    return dataclasses.replace(blueprint, base=base)


def prepared(blueprint: Blueprint, point: Point) -> str | None:
    """The shards that a point needs, prepared if they are not; None where all trials use the base's."""
    from data_pipeline.prepare import prepare

    config = blueprint.prepare_config(point)
    if config is None:
        return None
    key = json.dumps(dataclasses.asdict(config), sort_keys=True)
    if key not in _SETS:
        _SETS[key] = str(prepare(config))
    return _SETS[key]


def planned(config: TrainConfig) -> tuple[int, int]:
    """(steps of a run, the largest number of candidates of a training row), by the manifest alone."""
    from data_pipeline.shards import ShardSet
    from urg.training.plan import Plan, rows_to_train_on

    shards, name = ShardSet.open(config.data.shards, verify=False), config.data.train_split
    if name not in shards.splits:
        raise UserError(f"{shards.folder} has no split {name}; it has {', '.join(shards.splits)}.")
    facts = shards.manifest["splits"][name]
    return Plan.of(config, rows_to_train_on(config, facts["rows"])).steps, int(facts["candidates"]["max"])
