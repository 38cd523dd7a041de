"""Train URG, or a system that it is compared with: `python -m urg.train --config sample`, on a laptop, a GPU box or a
Ray cluster.

Reads prepared shards, runs one Ray Train worker a GPU or CPU slot under DeepSpeed, and leaves in `<storage>/<name>/`:
    model/           the best model so far, a Hugging Face folder: URG's for `Ensemble.from_pretrained`. The dev split
                     chooses it, under cross-validation (`data.folds`) a tenth of the rows that are not held out
    checkpoint-…/    what a run resumes from
    config.yaml, train.log, mlflow-spool/
The same command again continues the run where it stopped; on SIGTERM it writes a checkpoint first and ends with code
75. With several nodes, storage and shards must be on a path that all share.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from urg.code_version import git_commit
from urg.config import PRESETS, RANK_METRICS, TEXT_METRICS, EvalConfig, TrainConfig

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from data_pipeline.shards import ShardSet
    from urg.training.state import Job, Outcome

# What may differ when a run is resumed: where and how it runs, not what it computes.
FREE_ON_RESUME = (
    "data.shards",  # compared by what it holds
    "dry_run",
    "batch.",  # how the workers share the global batch, which is compared
    "engine.workers",
    "engine.min_workers",
    "engine.resize_every_s",
    "engine.max_failures",
    "engine.timeout_s",
    "checkpoint_every",
    "keep_checkpoints",
    "storage",
    "tracking.",
)


def main(config: TrainConfig) -> None:
    """Train URG, or a baseline of it, on prepared shards with Ray Train and DeepSpeed; the same command again
    resumes."""
    _require_metric_of_ranking(config)
    if config.dry_run:
        from urg.training.estimate import describe

        print(describe(config))
        return
    from urg.training.state import RESUMES, Stopped

    try:
        model = train(config)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(RESUMES) from None
    print(f"model: {model}")
    shards, output = config.data.shards, model.with_name("evaluation")
    named = f"--model {model}"
    if config.system != "urg":  # which brings no label of its own
        named = f"--folders.{config.system} {model} --label {config.data.label}"
    print(f"next:  python -m urg.evaluate {named} --shards {shards} --output {output}")


def train(config: TrainConfig, tags: Mapping[str, str] | None = None) -> Path:
    """Run or resume a training run; returns the folder of its best model. tags: more of them for its MLflow run.

    Raises UserError for what the user can mend, and Stopped where the run was told to stop.
    """
    from data_pipeline.commit import locked
    from urg.tracking import absolute_uri
    from urg.training.fuser_choice import require_predictions
    from urg.training.plan import Plan, open_data, require_base, training_and_dev, training_rows
    from urg.training.state import Job

    config = with_absolute_paths(config)
    shards = open_data(config)
    # Pinned: a later `prepare` under the same root must not change the data of a run.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(shards.folder)))
    require_base(config)
    require_predictions(config, shards)
    plan = Plan.of(config, training_rows(config, training_and_dev(config, shards)[0]))
    run = Path(config.storage) / config.name
    identity = _identity(config, shards)
    with locked(run, busy="trains"):
        resume_from = _prepare_run_folder(config, run, identity)
        if _is_done(run, plan.steps):
            print(f"run {config.name} has already done its {plan.steps} steps; choose another --name for a new run.")
            return run / "model"
        print(f"training {config.name}: {plan.rows} rows, {plan.steps} steps of {plan.global_batch}, run folder {run}")
        all_tags = {"data": identity["data"], "git_commit": git_commit(), "system": config.system, **(tags or {})}
        uri = absolute_uri(config.tracking.uri or "", Path(config.storage))
        outcome = _fit(Job(config, run, uri, resume_from, all_tags, identity["fencing_token"]))
    _require_finished(outcome, config, plan.steps)
    return run / "model"


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Workers run in other folders: every path is made absolute here, once."""
    if "://" in config.storage:
        raise UserError(
            f"storage {config.storage}: give a folder, on several nodes one that they share (NFS, EFS, FSx, Filestore)."
        )
    return dataclasses.replace(
        config,
        storage=str(Path(config.storage).expanduser().absolute()),
        resume=config.resume
        if config.resume in ("auto", "never")
        else str(Path(config.resume).expanduser().absolute()),
        data=dataclasses.replace(config.data, shards=str(Path(config.data.shards).expanduser().absolute())),
        model=dataclasses.replace(config.model, base=absolute_if_folder(config.model.base)),
        fuser=dataclasses.replace(config.fuser, predictions=_absolute(config.fuser.predictions)),
        eval=dataclasses.replace(config.eval, bertscore_model=absolute_if_folder(config.eval.bertscore_model)),
    )


def _absolute(files: list[str] | None) -> list[str] | None:
    return None if files is None else [str(Path(file).expanduser().absolute()) for file in files]


def absolute_if_folder(name: str | None) -> str | None:
    """A local folder by its absolute path; a hub id as it is."""
    return str(Path(name).expanduser().absolute()) if name and Path(name).expanduser().is_dir() else name


def _identity(config: TrainConfig, shards: ShardSet) -> dict[str, Any]:
    """What a run is, as its folder keeps it: its settings, what it reads by content, and this start of it."""
    from urg.training.fuser_choice import predictions_digests

    return {
        "config": _flat(config),
        "data": str(shards.manifest["key"]),
        "predictions": predictions_digests(config),
        "fencing_token": uuid.uuid4().hex,
    }


def _prepare_run_folder(config: TrainConfig, run: Path, identity: dict[str, Any]) -> Path | None:
    """Check the run's folder and write what it is; returns the checkpoint that `--resume PATH` names."""
    import yaml

    from data_pipeline.commit import writing
    from urg.training import checkpoints
    from urg.training.state import IDENTITY

    resume_from = None if config.resume in ("auto", "never") else Path(config.resume)
    if resume_from is not None:
        checkpoints.require_whole(resume_from)
    stored = run / IDENTITY
    if stored.exists() and any(run.glob(f"{checkpoints.PREFIX}*")):
        if config.resume == "never":
            raise UserError(f"run folder {run} exists: choose another --name, or --resume auto to continue it.")
        _require_same_run(run, json.loads(stored.read_text()), identity)
    with writing(run):
        checkpoints.write_json(stored, identity)
        (run / "config.yaml").write_text(yaml.safe_dump(settings_of(config), sort_keys=False))
    return resume_from


def _require_same_run(run: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError, naming the keys, where a run would go on with another configuration or other data."""
    old, new = with_later_settings(stored["config"]), {**wanted["config"]}
    for side in (old, new):  # `auto` and `never` start a run alike
        side["resume"] = None if side["resume"] in ("auto", "never") else side["resume"]
        side["global batch"] = side["batch.micro"] * side["batch.accumulation"] * side["engine.workers"]
    keys = sorted(key for key in old.keys() | new.keys() if not key.startswith(FREE_ON_RESUME))
    changed = [f"{key} (was {old.get(key)!r}, now {new.get(key)!r})" for key in keys if old.get(key) != new.get(key)]
    if stored["data"] != wanted["data"]:
        changed.append("the prepared data")
    if "predictions" in stored and stored["predictions"] != wanted["predictions"]:  # an older run has not kept them
        changed.append("what the files of fuser.predictions hold")
    if changed:
        raise UserError(
            f"run folder {run} belongs to another configuration: {'; '.join(changed)}. Choose another --name."
        )


def with_later_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings of a training by dotted key, as JSON gives them back, with those that came later as it had them:
    the default, but for what a fold measures, which was the part that is held out."""
    default = _flat(TrainConfig(eval=EvalConfig(metric="rougeL")))  # the default metric alone needs another setting
    if stored.get("data.folds") is not None:
        default["data.fold_dev"] = "held_out"
    return {**default, **stored}


def _require_metric_of_ranking(config: TrainConfig) -> None:
    """Raise UserError where a URG that only ranks would choose its best model by a metric of written text, as a preset
    has it. A run that was begun so goes on; whoever calls `train`, as a sweep does for its objective, has named it."""
    from urg.training.state import IDENTITY

    begun = (Path(config.storage).expanduser() / config.name / IDENTITY).exists()
    if config.system == "urg" and not config.loss.generation and config.eval.metric in TEXT_METRICS and not begun:
        raise UserError(
            f"eval.metric={config.eval.metric!r}: measures what URG writes, and with loss.generation false it only "
            f"ranks: choose the best model by --eval.metric label, or another of {', '.join(RANK_METRICS[1:])}."
        )


def _is_done(run: Path, steps: int) -> bool:
    """Whether the run's last checkpoint is there and whole, its model measured and published."""
    from urg.training import checkpoints

    if checkpoints.last_step(run) < steps or not (run / "model").is_dir():
        return False
    newest, _ = checkpoints.newest_whole(checkpoints.newest_first(run))
    stored = checkpoints.load_state(newest) if newest else {"step": -1}
    return int(stored["step"]) >= steps and not stored.get("evaluation_due")


def _fit(job: Job) -> Outcome:
    """Start Ray Train and wait, showing the workers' log."""
    from urg.progress import follow

    # A process that is stopped has no watchdog that could end it: Ray asks each worker whether it lives.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(min(600, job.config.engine.timeout_s)))
    finished = threading.Event()
    follower = threading.Thread(target=follow, args=(job.run / "train.log", finished), daemon=True)
    follower.start()
    try:
        return _through_failed_starts(job)
    finally:
        finished.set()
        follower.join(timeout=5)


def _through_failed_starts(job: Job) -> Outcome:
    """Train. Ray Train starts its workers anew when one dies, but not when it dies while the training function is
    handed to it, half of the time that a start takes: that ends Ray's controller. Here another one begins, in a new
    session, for the dead one would keep its room in the old one. Whose session it is not, such as a trial's, cannot
    make a new one: there the run ends, and the same call resumes it."""
    import ray
    from ray.train import ControllerError

    from urg.progress import RunLog
    from urg.training.notices import UNTIL_STOPPED

    left = 0 if ray.is_initialized() else job.config.engine.max_failures
    while True:
        try:
            return _in_a_session(job)
        except ControllerError as error:
            stopped = not (job.run / UNTIL_STOPPED).exists()
            if left == 0 or stopped or not is_lost_start(error):
                raise
            left -= 1
            lost = f"a worker was lost before it began ({type(error.controller_failure).__name__}): all start anew"
            RunLog(job.run / "train.log").line(lost)


def is_lost_start(error: Exception) -> bool:
    """Whether Ray Train's controller has ended because a worker died as it was handed the training function."""
    from ray.exceptions import RayError
    from ray.train import ControllerError

    return isinstance(error, ControllerError) and isinstance(error.controller_failure, RayError)


def _in_a_session(job: Job) -> Outcome:
    """Train in the Ray that there is, or in one of our own."""
    from data_pipeline.ray_session import ray_session
    from urg.training import checkpoints
    from urg.training.notices import sigterm_stops

    checkpoints.forget_snapshot(job.run)
    with ray_session():
        _require_resources(job.config)
        with sigterm_stops(job.run):
            result: Any = _trainer(job).fit()
        return result.return_value


def _require_finished(outcome: Outcome, config: TrainConfig, steps: int) -> None:
    """Raise UserError or Stopped where the workers ended before the last step."""
    from urg.training.state import Stopped

    if outcome.refusal:
        raise UserError(outcome.refusal)
    if outcome.stopped_at is not None:
        reached = f"checkpoint of step {outcome.stopped_at} of {steps}"
        raise Stopped(f"stopped: run {config.name} has a {reached}; the same command resumes it.")


def _trainer(job: Job) -> TorchTrainer:
    """The TorchTrainer of a run."""
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import ScalingConfig  # ray.train's own, which its stub does not know

    from urg.training.backend import HeedingTorchConfig
    from urg.training.loop import train_worker

    config, engine = job.config, job.config.engine
    resources = {"CPU": engine.cpus_per_worker} | ({"GPU": 1} if engine.use_gpu else {})
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # their type knows no return value
        train_loop_config={"job": job},
        torch_config=HeedingTorchConfig(backend="nccl" if engine.use_gpu else "gloo", timeout_s=engine.timeout_s),
        scaling_config=ScalingConfig(
            num_workers=(engine.min_workers, engine.workers) if engine.min_workers else engine.workers,
            use_gpu=engine.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=engine.resize_every_s,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=config.storage,
            failure_config=FailureConfig(max_failures=engine.max_failures),
        ),
    )


def _require_resources(config: TrainConfig) -> None:
    """Raise UserError where this machine can never hold the workers, instead of waiting for ever. A cluster may grow:
    there say what the run waits for."""
    import ray

    from data_pipeline.ray_session import on_cluster

    have, engine = ray.cluster_resources(), config.engine
    workers = engine.min_workers or engine.workers
    wanted = {"CPU": workers * engine.cpus_per_worker, "GPU": workers if engine.use_gpu else 0}
    for resource, amount in wanted.items():
        there = have.get(resource, 0)
        if there >= amount:
            continue
        if on_cluster():
            needed = f"{amount} that {workers} workers need"
            print(f"the cluster has {there:.0f} {resource}s of the {needed}: the run waits for nodes", flush=True)
        else:
            raise UserError(
                f"{workers} workers need {amount} {resource}s and this machine has {there:.0f}: "
                "lower engine.workers or engine.cpus_per_worker, or start on a larger cluster."
            )


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """A configuration as nested settings, of types that YAML has."""
    settings = dataclasses.asdict(config)
    settings["optim"]["betas"] = list(settings["optim"]["betas"])
    return settings


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted keys; values as JSON would give them back."""
    from urg.tracking.loggable import flatten

    return {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(config)}


if __name__ == "__main__":
    run_command(main, TrainConfig, presets=PRESETS)
