"""What a sweep would be, without running it: `python -m tuning.sweep --dry-run …`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from data_pipeline.errors import UserError
from tuning.blueprint import Blueprint, choice_of_candidates, draw_up, first_rung
from tuning.config import SweepConfig
from tuning.room import worker_need

if TYPE_CHECKING:
    from tuning.space import Dimension


def describe(config: SweepConfig) -> str:
    """The space, the first point, steps, resources and early ends, checked as the sweep would. Writes nothing."""
    blueprint = draw_up(config)
    engine, folds = blueprint.base.engine, config.folds or 1
    need = ", ".join(f"{amount:g} {name}" for name, amount in worker_need(engine).items())
    limit = blueprint.limit + (f"; {folds} folds each, of which no model is exported" if folds > 1 else "")
    lines = [
        yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True).rstrip(),
        "",
        *(f"space       {_dimension(blueprint, dimension)}" for dimension in blueprint.space.dimensions),
        f"search      {config.searcher}, to raise {', '.join(config.objective)}; {limit}",
        f"a trial     {engine.workers} × {need}",
        *_data(blueprint),
        f"MLflow      {blueprint.tracking_uri}, experiment {blueprint.experiment}",
        f"folder      {blueprint.folder}{' (goes on with what is there)' if _exists(blueprint) else ''}",
        "dry run: nothing was written.",
    ]
    return "\n".join(lines)


def _dimension(blueprint: Blueprint, dimension: Dimension) -> str:
    if dimension.choices:
        values = f"one of {', '.join(map(str, dimension.choices))}"
    else:
        values = f"{dimension.low:g} to {dimension.high:g}" if dimension.low is not None else ""
        values += ", log" if dimension.log else ""
        values += f", step {dimension.step:g}" if dimension.step else ""
    return f"{dimension.name}: {values}; base {blueprint.base_value(dimension.key)}"


def _data(blueprint: Blueprint) -> list[str]:
    """Steps and rungs by the shards, where they are there already."""
    from tuning.data import planned

    if blueprint.prepare is not None:
        return [f"data        prepared from {blueprint.prepare.input}, a set for each choice of lengths"]
    try:
        steps, most = planned(blueprint.train_config({}, blueprint.units(0)[0]))
    except UserError as error:
        return [f"data        {error}"]
    lines = [f"data        {blueprint.base.data.shards}, up to {most} candidates a row"]
    lines += [f"K           {line}" for line in choice_of_candidates(blueprint, most)]
    lines.append(f"steps       {steps} a trial")
    if blueprint.config.scheduler.kind == "asha":
        rung, rungs = first_rung(blueprint, steps), []
        while rung < steps:
            rungs.append(rung)
            rung *= blueprint.config.scheduler.reduction
        lines.append(f"ASHA        ends trials at steps {', '.join(map(str, rungs)) or '(none: too few steps)'}")
    return lines


def _exists(blueprint: Blueprint) -> bool:
    return (Path(blueprint.folder) / "sweep.json").exists()
