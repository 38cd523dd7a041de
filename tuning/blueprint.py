"""What a sweep will do, from its configuration alone: the base, the space, and the configuration of each trial."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.config import PRESETS as PREPARE_PRESETS
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from tuning.config import SweepConfig
from tuning.space import Dimension, Point, Space
from tuning.values import build, kind_of, leaves, read_file, value_of
from urg.config import PRESETS as TRAIN_PRESETS
from urg.config import TrainConfig
from urg.train import settings_of, with_absolute_paths

PREPARE = "prepare."
# What the sweep itself decides, or what must be one for all trials to compare.
_OURS: tuple[str, ...] = (
    "name",
    "storage",
    "resume",
    "dry_run",
    "data.shards",
    "data.fold",
    "data.folds",
    "eval.metric",
    "tracking.",
)
_OURS += ("engine.workers", "engine.use_gpu", "engine.cpus_per_worker", "engine.max_failures")
# How long a training is, how much it measures and keeps: what `overrides` say of these is for the trials alone.
LENGTH = ("steps", "epochs", "data.limit", "eval.every", "eval.rows", "keep_checkpoints")

# What K = N switches off: the pass with the last candidate, and, where no gap leaves any out, selection.
_WITHOUT_LAST = tuple(
    f"loss.{key}" for key in ("beta", "m", "tau", "second_ce", "kl_teacher", "teacher_dropout", "kl_tau_squared")
)
_WITHOUT_CHOICE = ("loss.selection", "loss.schedule_steps")


@dataclass(frozen=True)
class Unit:
    """One training run of the sweep: a trial, or one fold of it."""

    number: int
    """The trial's number, in Optuna's study, in Tune's configurations and in MLflow's names alike."""
    fold: int | None = None

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return trial_name(self.number) + ("" if self.fold is None else f"-fold-{self.fold}")


def trial_name(number: int) -> str:
    """The name of a trial's folder and MLflow run."""
    return f"trial-{number:04d}"


@dataclass(frozen=True)
class Blueprint:
    """A checked sweep: every path absolute."""

    config: SweepConfig
    base: TrainConfig
    prepare: PrepareConfig | None
    space: Space
    settings: dict[str, Any]
    """The base as nested settings, before a trial's values."""
    full: dict[str, Any]
    """The same for a training by itself: the base's own length, and what else the sweep changes for its trials."""
    tracking_uri: str

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return Path(self.config.storage) / self.config.name

    @property
    def trials_folder(self) -> Path:
        """Where the run folders of trials are."""
        return self.folder / "trials"

    @property
    def experiment(self) -> str:
        """The MLflow experiment."""
        return self.config.experiment or self.config.name

    def units(self, number: int) -> list[Unit]:
        """The runs that a trial consists of."""
        return [Unit(number, fold) for fold in range(self.config.folds)] if self.config.folds else [Unit(number)]

    def base_value(self, key: str) -> Any:
        """The base's value at a key of the space."""
        return value_of(self.prepare, key.removeprefix(PREPARE)) if _is_prepare(key) else value_of(self.base, key)

    def train_config(self, point: Mapping[str, Any], unit: Unit, shards: str | None = None) -> TrainConfig:
        """The configuration of one run. shards: where they are, if not where the base says.

        Raises UserError where the point's values do not go together.
        """
        values = {key: value for key, value in point.items() if not _is_prepare(key)}
        values |= {"name": unit.name, "storage": str(self.trials_folder)}
        values |= {"data.shards": shards or self.base.data.shards, "data.folds": self.config.folds}
        values |= {"data.fold": unit.fold}
        return build(TrainConfig, self.settings, values)

    @property
    def queue(self) -> list[Point]:
        """The points that are known from the start, by dimension name: the base's own, and a grid's others."""
        first = [self.space.base_point(self.base_value)] if self.config.base_first else []
        grid = self.space.grid() if self.config.searcher == "grid" else []
        return [*first, *(point for point in grid if point not in first)]

    @property
    def trials(self) -> int:
        """How many points are tried in all."""
        return self.config.trials or (len(self.queue) if self.config.searcher == "grid" else 20)

    @property
    def limit(self) -> str:
        """What ends the sweep, in words; also what of a grid it leaves out."""
        limit = f"{self.trials} trials"
        if self.config.searcher == "grid" and self.trials < len(self.queue):
            limit += f" of the grid's {len(self.queue)} points (trials null tries all)"
        return limit + (f", none begun after {self.config.hours:g} h" if self.config.hours else "")

    @property
    def shortened(self) -> bool:
        """Whether trials are shorter, or measure less, than the base by itself."""
        from urg.tracking.loggable import flatten

        own, full = dict(flatten(self.settings)), dict(flatten(self.full))
        return any(own[key] != full[key] for key in LENGTH)

    def full_config(self, point: Mapping[str, Any], shards: str | None = None) -> TrainConfig:
        """The training that a point was looked for: at the base's own length, where the space does not hold that."""
        values = {key: value for key, value in point.items() if not _is_prepare(key)}
        values |= {"name": f"{self.config.name}-best", "storage": self.config.storage}
        return build(TrainConfig, self.full, {**values, "data.shards": shards or self.base.data.shards})

    def prepare_config(self, point: Mapping[str, Any]) -> PrepareConfig | None:
        """The data preparation that a point needs; None where all trials use the base's shards."""
        if self.prepare is None:
            return None
        values = {key.removeprefix(PREPARE): value for key, value in point.items() if _is_prepare(key)}
        settings = dataclasses.asdict(self.prepare) | {"output": str(self.folder / "shards")}
        return build(PrepareConfig, settings, values)


def draw_up(config: SweepConfig) -> Blueprint:
    """Read the base and the space and check that every value of the space is one that training takes.

    Raises UserError for an unknown key, a value out of range, and a base point outside of the space.
    """
    from urg.tracking import absolute_uri
    from urg.tracking.loggable import flatten

    if "://" in config.storage:
        raise UserError(f"storage {config.storage}: give a folder, on several nodes one that they share.")
    storage = Path(config.storage).expanduser().absolute()
    config = dataclasses.replace(config, storage=str(storage))
    given = read_file(config.base, TRAIN_PRESETS)
    first: dict[str, Any] = {"eval.metric": config.objective[0]}
    first |= {} if config.retries is None else {"engine.max_failures": config.retries}
    fixed = {"resume": "auto", "dry_run": False, "storage": str(storage), "data.folds": None, "data.fold": None}
    # A fold is measured on the part that is held out, which then chooses nothing: trial.py counts its last evaluation.
    fixed["data.fold_dev"] = "held_out" if config.folds else "training"
    overrides = dict(flatten(config.overrides)) if config.overrides else {}  # `--overrides.eval.every` nests
    base = build(TrainConfig, given, {**overrides, **first, **fixed})
    if "bertscore" in config.objective and base.eval.bertscore_model is None:
        raise UserError("objective bertscore needs eval.bertscore_model, a hub id or a folder: add it to overrides.")
    uri = absolute_uri(base.tracking.uri or "", storage)
    own = {key: value for key, value in overrides.items() if key not in LENGTH}
    full = build(TrainConfig, given, {**own, "eval.metric": config.objective[0], **fixed})
    full = _with_paths(full, uri, full.tracking.experiment)
    base = _with_paths(base, uri, config.experiment or config.name)
    prepare = build(PrepareConfig, read_file(config.prepare, PREPARE_PRESETS), {}) if config.prepare else None
    space = Space.parse(config.space, lambda key: _kind(key, prepare))
    blueprint = Blueprint(config, base, prepare, space, settings_of(base), settings_of(full), uri)
    for dimension in space.dimensions:
        _require_valid(blueprint, dimension)
    if config.base_first:
        space.base_point(blueprint.base_value)
    if config.searcher == "grid":
        space.grid()
    return blueprint


def choice_of_candidates(blueprint: Blueprint, most: int) -> list[str]:
    """A line where the base has a fixed K that leaves nothing to choose. most: the largest N of a training row.

    Raises UserError for such a K within the space, whose trials beyond it would be all alike; and for one of the base
    beside what then changes nothing.
    """
    dimensions = blueprint.space.dimensions
    for each in dimensions:
        if each.key == "model.k" and blueprint.base.system == "urg" and max(each.corners()) >= most:
            raise UserError(
                f"space model.k goes up to {max(each.corners())}, and no row has more than {most} candidates: end it "
                f"below. To fuse all of them, give the base model.k {most} by `overrides`."
            )
    k = _fixed_k(blueprint)
    if k is None or k < most:
        return []
    gap = blueprint.base.model.k_gap is not None or any(each.key == "model.k_gap" for each in dimensions)
    off = _WITHOUT_LAST if gap else _WITHOUT_LAST + _WITHOUT_CHOICE
    idle = sorted({each.key for each in dimensions if each.key in off})
    said = f"model.k={k} of the base, and no row has more than {most} candidates: "
    if idle:
        raise UserError(
            f"{said}with K = N the space's {', '.join(idle)} would change nothing; set it lower by "
            f"`overrides`, or take {'it' if len(idle) == 1 else 'them'} out of the space."
        )
    return [said + ("no last one is left for robust training." if gap else "all of them are fused.")]


def _fixed_k(blueprint: Blueprint) -> int | None:
    """The base's K, where trials have it and where it counts."""
    ks = [each for each in blueprint.space.dimensions if each.key == "model.k"]
    return blueprint.base.model.k if blueprint.base.system == "urg" and all(k.when for k in ks) else None


def first_rung(blueprint: Blueprint, steps: int) -> int:
    """Steps of ASHA's first rung: as configured, or a ninth (1/η²) of the steps, at an evaluation."""
    scheduler, every = blueprint.config.scheduler, blueprint.base.eval.every
    if scheduler.grace is not None:
        return scheduler.grace
    return max(1, math.ceil(steps / scheduler.reduction**2 / every)) * every


def _with_paths(base: TrainConfig, uri: str, experiment: str) -> TrainConfig:
    """Paths that mean the same in every process, and MLflow as the sweep has it."""
    tracking = dataclasses.replace(base.tracking, uri=uri, experiment=experiment)
    return with_absolute_paths(dataclasses.replace(base, tracking=tracking))


def _is_prepare(key: str) -> bool:
    return key.startswith(PREPARE)


def _kind(key: str, prepare: PrepareConfig | None) -> type:
    """The type of a key of the space. Raises UserError for one that cannot be searched over."""
    if _is_prepare(key):
        if prepare is None:
            raise UserError(f"the space names {key}: say in `prepare` from which data preparation to start.")
        lengths = {f"{PREPARE}{k}": kind for k, kind in leaves(PrepareConfig).items() if k.startswith("lengths.")}
        return kind_of(lengths, key)
    if key.startswith(_OURS):
        raise UserError(f"the space names {key}, which the sweep sets itself or which must be one for all trials.")
    return kind_of(leaves(TrainConfig), key)


def _require_valid(blueprint: Blueprint, dimension: Dimension) -> None:
    """Raise UserError where an end of a range or a choice is none that training, or preparing, takes."""
    for value in dimension.corners():
        point: Point = {other: values[0] for other, values in dimension.when} | {dimension.key: value}
        try:
            blueprint.train_config(point, blueprint.units(0)[0])
            blueprint.prepare_config(point)
        except UserError as error:
            raise UserError(f"space {dimension.name}, value {value!r}: {error}") from error
