"""Search for the best training configuration: `python -m tuning.sweep --config sample`, on a laptop or a Ray cluster.

Ray Tune runs the trials, each of them a real training of `urg.train`; Optuna chooses their points. In
`<storage>/<name>/` it leaves
    best.yaml        the full training with the best point: `python -m urg.train --config best.yaml`
    best-trial.yaml  the best trial's own, as short as the sweep's `overrides` made it
    best/            that trial's model
    report.html, report.md
    study.db         Optuna's study; trials/: a run folder for each trial; tune/: Tune's own account of each session
The same command again goes on where it stopped, however it stopped; on SIGTERM the trials that train write a checkpoint
first, and it ends with code 75.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from tuning.config import PRESETS, SweepConfig

if TYPE_CHECKING:
    from tuning.blueprint import Blueprint
    from tuning.ledger import Ledger
    from tuning.search import LedgerScheduler, LedgerSearcher
    from tuning.space import Point
    from tuning.tracking import SweepTracking

# What may differ when a sweep is resumed: how far and where it runs, not what it searches.
FREE_ON_RESUME = (
    "trials",
    "hours",
    "concurrency",
    "retries",
    "retry_failed",
    "resume",
    "dry_run",
    "keep_checkpoints",
    "storage",
    "experiment",
    "register",
)

BASE = "base: "
"""With which the keys of the base's settings begin in a sweep's identity."""


def main(config: SweepConfig) -> None:
    """Find the best training configuration with Ray Tune and Optuna; the same command again goes on."""
    if config.dry_run:
        from tuning.estimate import describe

        print(describe(config))
        return
    from tuning.blueprint import draw_up
    from urg.training.state import RESUMES, Stopped

    try:
        folder, blueprint = sweep(config), draw_up(config)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(RESUMES) from None
    print(f"report: {folder / 'report.html'}")
    if (folder / "best").is_dir():
        print(f"model:  {folder / 'best'}")
    if (folder / "best.yaml").exists() and (blueprint.shortened or config.folds):
        print(f"next:   python -m urg.train --config {folder / 'best.yaml'}")


def sweep(config: SweepConfig) -> Path:
    """Run or resume a sweep; its folder. Raises UserError for what the user can mend, and Stopped after SIGTERM."""
    from data_pipeline.commit import locked, writing
    from data_pipeline.ray_session import ray_session
    from tuning.blueprint import draw_up
    from tuning.data import pinned

    blueprint = pinned(draw_up(config))
    folder = blueprint.folder
    with locked(folder, busy="sweeps"):
        _require_same_sweep(blueprint)
        with writing(folder):
            _write_identity(blueprint)
        with ray_session():
            _run(blueprint)
    return folder


def _run(blueprint: Blueprint) -> None:
    """Everything that needs Ray."""
    import ray

    from data_pipeline.ray_session import on_cluster
    from tuning.blueprint import choice_of_candidates
    from tuning.data import planned, prepared
    from tuning.finish import finish
    from tuning.ledger import Ledger
    from tuning.orphans import orphans_freed
    from tuning.retry import reopen_failed
    from tuning.room import runs_at_once
    from tuning.stopping import sigterm_stops_trials
    from tuning.tracking import SweepTracking
    from urg.training.state import Stopped

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = runs_at_once(nodes, blueprint.base.engine, blueprint.config.concurrency, grows=on_cluster())
    shards = prepared(blueprint, {})
    steps, most = planned(blueprint.train_config({}, blueprint.units(0)[0], shards))
    for line in choice_of_candidates(blueprint, most):
        print(line)
    retried = reopen_failed(blueprint) if blueprint.config.retry_failed else []
    ledger = Ledger.open(blueprint, steps)
    tracking = SweepTracking(ledger)
    tracking.settle_left()
    print(_greeting(blueprint, ledger, at_once, len(retried)), flush=True)
    searcher, scheduler = _searcher(ledger, tracking)
    until = blueprint.folder / "tune" / f"until-stopped-{uuid.uuid4().hex[:8]}"
    with orphans_freed(), sigterm_stops_trials(searcher.stop, until):
        _tune(blueprint, searcher, scheduler, at_once, until)
    left = searcher.close()
    if searcher.refusal:
        tracking.close([], {}, interrupted=True)
        raise UserError(searcher.refusal)
    if searcher.stopped:
        tracking.close([], {}, interrupted=True)
        raise Stopped(_stopped(blueprint, left))
    if left:
        tracking.close([], {}, interrupted=True)
        raise UserError(f"interrupted with {len(left)} trials under way: the same command goes on with them.")
    finish(ledger, tracking)


def _searcher(ledger: Ledger, tracking: SweepTracking) -> tuple[LedgerSearcher, LedgerScheduler]:
    """What tells Tune which trial comes next, and when one ends early."""
    from tuning.data import planned, prepared
    from tuning.finish import drop_checkpoints
    from tuning.search import LedgerScheduler, LedgerSearcher

    blueprint = ledger.blueprint

    def line_up(number: int, point: Point) -> list[dict[str, Any]]:
        shards = prepared(blueprint, point)
        units = blueprint.units(number)
        return [
            {"number": number, "fold": u.fold, "point": point, "shards": shards, "tags": tracking.tags(u)}
            for u in units
        ]

    def settle(number: int, outcome: Any) -> None:
        print(_line(ledger, number, outcome), flush=True)
        tracking.settle(number, outcome)
        tracking.log_history()
        drop_checkpoints(blueprint, number)

    def steps(point: Point) -> int:
        return planned(blueprint.train_config(point, blueprint.units(0)[0], prepared(blueprint, point)))[0]

    return LedgerSearcher(ledger, line_up, settle), LedgerScheduler(ledger, steps)


def _tune(
    blueprint: Blueprint, searcher: LedgerSearcher, scheduler: LedgerScheduler, at_once: int, until: Path
) -> None:
    """Let Ray Tune run trials until the searcher has no more, or the user interrupts."""
    # Tune's progress table and its per-trial CSV and TensorBoard files: the runs have their own logs.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Seconds between snapshots of Tune's own account: after a kill it lags behind the ledger by so much at most.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    from ray import tune

    from tuning.trial import run_unit

    trainable = functools.partial(run_unit, blueprint=blueprint, until=until)
    tuner = tune.Tuner(
        # No CPU for the function that waits for its workers; a byte, because Tune asks for something.
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=at_once,
            trial_name_creator=_tune_name,
            trial_dirname_creator=_tune_name,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=f"session-{uuid.uuid4().hex[:8]}",
            storage_path=str(blueprint.folder / "tune"),
            failure_config=tune.FailureConfig(max_failures=blueprint.base.engine.max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def _tune_name(trial: Any) -> str:
    from tuning.blueprint import Unit

    return Unit(trial.config["number"], trial.config["fold"]).name


def _identity(blueprint: Blueprint) -> dict[str, Any]:
    """What makes it this sweep, as JSON gives it back."""
    from urg.tracking.loggable import flatten

    config = {key: value for key, value in flatten(blueprint.config) if not key.startswith(FREE_ON_RESUME)}
    config = {key: value for key, value in config.items() if key not in ("base", "prepare")}
    base = {BASE + key: value for key, value in flatten(blueprint.base)}
    for key in ("storage", "resume", "dry_run", "engine.max_failures", "tracking.uri", "tracking.experiment"):
        base.pop(BASE + key)
    prepare = {f"prepare: {key}": value for key, value in flatten(blueprint.prepare)} if blueprint.prepare else {}
    found: dict[str, Any] = json.loads(json.dumps(config | base | prepare))
    return found


def _require_same_sweep(blueprint: Blueprint) -> None:
    """Raise UserError, with the differences, where the folder holds another sweep, or one that must not go on."""
    from urg.train import with_later_settings

    stored = blueprint.folder / "sweep.json"
    if not stored.exists():
        return
    if not blueprint.config.resume:
        raise UserError(f"{blueprint.folder} holds a sweep: choose another --name, or --resume to go on with it.")
    new, old = _identity(blueprint), json.loads(stored.read_text())
    if old.get("folds") and "base: data.fold_dev" not in old:
        raise UserError(
            f"{blueprint.folder} holds a sweep of an earlier version, which counted a fold by the best of its "
            "evaluations; now it is the last, and the two do not compare. Choose another --name."
        )
    base = {key.removeprefix(BASE): value for key, value in old.items() if key.startswith(BASE)}
    later = {BASE + key: value for key, value in with_later_settings(base).items()}
    old = {key: value for key, value in later.items() if key in new} | old
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    changed = [f"{key} (was {old.get(key)!r}, now {new.get(key)!r})" for key in keys]
    if changed:
        raise UserError(f"{blueprint.folder} holds another sweep: {'; '.join(changed)}. Choose another --name.")


def _write_identity(blueprint: Blueprint) -> None:
    from urg.training.checkpoints import write_json

    write_json(blueprint.folder / "sweep.json", _identity(blueprint))


def _greeting(blueprint: Blueprint, ledger: Ledger, at_once: int, retried: int) -> str:
    ended, open_trials = len(ledger.ended()), len(ledger.interrupted()) - retried
    config = blueprint.config
    before = f"; {ended} trials are done, {open_trials} were interrupted" if ended or open_trials else ""
    before += f"; {retried} failed and are tried again" if retried else ""
    keys = ", ".join(blueprint.space.keys)
    return f"sweep {config.name}: {keys}; {blueprint.limit}, {at_once} at once; folder {blueprint.folder}{before}"


def _stopped(blueprint: Blueprint, left: list[int]) -> str:
    """What is said after SIGTERM. left: the trials that have begun and not ended."""
    from urg.training.checkpoints import last_step

    runs = {number: [blueprint.trials_folder / unit.name for unit in blueprint.units(number)] for number in left}
    saved = sum(any(last_step(run) for run in runs[number]) for number in left)
    return f"stopped: {saved} of {len(left)} trials under way have a checkpoint; the same command goes on with all."


def _line(ledger: Ledger, number: int, outcome: Any) -> str:
    """What is printed of a trial that has ended."""
    point = ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in ledger.values(number).items()
    )
    names = ledger.blueprint.config.objective
    values = ", ".join(f"{name} {value:.4f}" for name, value in zip(names, outcome.values, strict=False))
    end = {"finished": values, "pruned": f"{values}, {outcome.reason}", "failed": f"failed: {outcome.reason}"}
    return f"trial {number}: {end[outcome.state]}  ({point})"


if __name__ == "__main__":
    run_command(main, SweepConfig, presets=PRESETS)
