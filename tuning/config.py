"""Every setting of a sweep: frozen dataclasses, checked on construction, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from urg.checks import require
from urg.config import DEV_METRICS

PRESETS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class SchedulerConfig:
    """Which trials are ended early."""

    kind: Literal["none", "asha"] = "none"
    """`asha`: at each rung only the best 1/`reduction` of the trials that have reached it go on (Li et al. 2020)."""
    grace: int | None = None
    """Steps of the first rung, before which no trial is ended; null: a ninth (1/η²) of the steps, rounded up to an
    evaluation."""
    reduction: int = 3
    """η: each rung is so many times later than the one before, and keeps one in so many trials."""

    def __post_init__(self) -> None:
        require(self.grace is None or self.grace >= 1, "scheduler.grace", self.grace, "must be at least 1 step.")
        require(self.reduction >= 2, "scheduler.reduction", self.reduction, "must be at least 2.")


@dataclass(frozen=True)
class SweepConfig:
    """A search for the best training configuration."""

    space: dict[str, Any]
    """Dotted key of the training configuration → {low, high, log, step} or {choices}; whole numbers where the key takes
    them. `when: {other key: value or [values]}` makes it conditional; a list of such ranges gives one for each
    condition. `prepare.lengths.*` prepares shards of other lengths, each set once."""
    base: str = "sample"
    """The training configuration to start from: a preset of urg.train or a YAML file."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key → value, changes to `base` for all trials, such as `steps: 60`."""
    prepare: str | None = None
    """The data preparation to start from, a preset of data_pipeline.prepare or a YAML file; needed for `prepare.*` in
    the space, and then used for every trial instead of `data.shards`."""
    name: str = "sweep"
    """The sweep's name, and its folder's in `storage`."""
    storage: str = "runs"
    """Folder for sweeps. With several nodes it must be shared between them."""
    objective: list[str] = field(default_factory=lambda: ["bertscore"])
    """Dev metrics to raise, as `eval.metric` has them; with several of them the Pareto front is looked for. A trial
    counts by its best evaluation by the first of them, whose model is the one that it keeps; a fold by its last."""
    searcher: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    """How points are chosen (Optuna). `grid` tries every combination; ranges then need a `step`."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """Which trials are ended early."""
    trials: int | None = None
    """Points to try in all, the base's own included; raise it to go on with a finished sweep. null: all points of a
    grid, 20 of the other searchers."""
    hours: float | None = None
    """No trial is begun after so many hours of sweeping, over all sessions; those that run then go on to their regular
    end, however long that takes."""
    folds: int | None = None
    """k-fold cross-validation over the training split: each point is trained so many times, in parallel, and counts by
    the mean over the parts. Each time all other parts are trained on, and the model of the last step is measured on the
    part that is held out: no checkpoint is chosen by it, and no model is exported or registered: best.yaml
    trains one."""
    base_first: bool = True
    """Try the base's own point first, and to its end. It must lie in the space."""
    concurrency: int | None = None
    """Runs at once; null: as many as the cluster has room for. Give it where the cluster grows on demand."""
    retries: int | None = None
    """How often a trial goes on from its last checkpoint after it lost a process, before it counts as failed; null: as
    the base's `engine.max_failures` has it."""
    retry_failed: bool = False
    """Try the trials that have failed again first, each from its last checkpoint."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of all trials that have ended, with their optimizer state, not only of failed ones; their
    best models stay in any case."""
    seed: int = 0
    """Seeds the searcher."""
    resume: bool = True
    """Go on with the sweep that the folder holds. False: refuse a folder that holds one."""
    experiment: str | None = None
    """MLflow experiment; null for one of the sweep's name."""
    register: str | None = None
    """Name in MLflow's model registry for the best model, null: the sweep's name. It gets the alias
    `champion` unless a version that is there already is as good by the first objective."""
    dry_run: bool = False
    """Print the checked space, the steps, what a trial takes and when ASHA ends trials; write nothing."""

    def __post_init__(self) -> None:
        valid = self.name and self.name == Path(self.name).name and self.name not in (".", "..")
        require(bool(valid), "name", self.name, "must be a plain folder name.")
        require(bool(self.space), "space", self.space, "name at least one key to search over.")
        require(bool(self.objective), "objective", self.objective, "name at least one dev metric.")
        for metric in self.objective:
            require(metric in DEV_METRICS, "objective", metric, f"is never reported; there are {_listed()}.")
        require(len(set(self.objective)) == len(self.objective), "objective", self.objective, "names one twice.")
        for key in ("trials", "concurrency"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, "must be at least 1.")
        require(self.hours is None or self.hours > 0, "hours", self.hours, "must be positive, or null for no limit.")
        require(self.folds is None or self.folds >= 2, "folds", self.folds, "must be at least 2, or null.")
        enough = self.retries is None or self.retries >= 0
        require(enough, "retries", self.retries, "must be 0 or more, or null.")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more.")
        if self.scheduler.kind == "asha":
            require(len(self.objective) == 1, "scheduler.kind", "asha", "compares one objective: give one, or none.")
            require(self.folds is None, "scheduler.kind", "asha", "cannot end the folds of a point early: use none.")


def _listed() -> str:
    return ", ".join(DEV_METRICS)
