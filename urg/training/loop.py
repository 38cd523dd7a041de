"""The training loop of one worker: one `while step < steps`, over an explicit state.

Every random choice is keyed by (seed, step, worker), so that a resumed run repeats an uninterrupted one bit for bit,
dropout included.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch.distributed as dist

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet
from urg.batching import GlobalBatches, micro_batches
from urg.model_card import CARD_FILE
from urg.objective import weighted_sum
from urg.progress import RunLog
from urg.tracking import Tracker, last_run, ray_metrics
from urg.training import checkpoints
from urg.training.dev import DevSet
from urg.training.engine import Engine
from urg.training.evaluations import record_evaluation
from urg.training.guard import NonFiniteGuard
from urg.training.plan import Plan, open_data, training_and_dev, training_rows
from urg.training.process import prepare_process, seed_everything
from urg.training.state import REFUSAL, Job, TrainState
from urg.training.task import Share, Task, build_task
from urg.training.window import Window

UNDEFINED = -1e30
"""The score of a checkpoint that was not evaluated, or whose dev rows do not define the metric: never the best."""


def train_worker(settings: dict[str, Job]) -> None:
    """The function that Ray Train runs on each worker; `settings["job"]` says what to do."""
    import ray.train

    job, context = settings["job"], ray.train.get_context()
    prepare_process(job.config)
    opened = _open(job)
    refusals: list[str | None] = [None] * context.get_world_size()
    dist.all_gather_object(refusals, opened if isinstance(opened, str) else None)
    refusal = next(filter(None, refusals), None)  # of any worker: one that went on alone would wait for the others
    if isinstance(opened, str) or refusal:
        (job.run / REFUSAL).write_text(str(refusal))  # no retry would help
        return
    trainer = Trainer(job, context.get_world_rank(), context.get_world_size(), *opened)
    tracker = trainer.start_tracking()
    try:
        trainer.fit(tracker)
        tracker.close("FINISHED")
    except BaseException:
        tracker.close("FAILED")
        raise


def _open(job: Job) -> tuple[ShardSet, Task] | str:
    """The data and what to train; or why this worker, on its node, cannot have them."""
    try:
        shards = open_data(job.config)
        return shards, build_task(job.config, shards)
    except UserError as error:
        return str(error)


class Trainer:
    """A worker's part of a run."""

    def __init__(self, job: Job, rank: int, world: int, shards: ShardSet, task: Task) -> None:
        self.job, self.config, self.rank, self.world = job, job.config, rank, world
        self.log = RunLog(job.run / "train.log")
        self.shards, self.task = shards, task
        self.split, _ = training_and_dev(self.config, self.shards)
        self.plan = Plan.of(self.config, training_rows(self.config, self.split))
        self.batches = GlobalBatches(self.plan.rows, self.config.global_batch, self.config.seed)
        self.engine = Engine(self.task.module, self.config, world)
        self.dev = DevSet(self.config, self.shards, rank, world)
        self.state = self._resume()
        self.window = Window(self.engine.device)
        self.non_finite = NonFiniteGuard(self.engine.skipped_steps)

    def fit(self, tracker: Tracker) -> None:
        """Train until the last step, evaluating and checkpointing on the way."""
        self.tracker = tracker
        while self.state.step < self.plan.steps:
            self._train_step()
            step = self.state.step
            if step % self.config.tracking.log_every == 0 or step == self.plan.steps:
                self._log_window()
            if step % self.config.eval.every == 0 or step == self.plan.steps:
                self._checkpoint(self._evaluate())
            elif self.config.checkpoint_every and step % self.config.checkpoint_every == 0:
                self._checkpoint({})
        self.tracker.log_artifact(self.job.run / "model" / CARD_FILE)

    def _train_step(self) -> None:
        """One optimizer step over one global batch."""
        started, step = time.perf_counter(), self.state.step + 1
        rows, after = self.batches.at(self.state.cursor)
        counts = self.task.counts(self.split, rows)
        shares = micro_batches(rows, self.rank, self.world, self.config.batch.micro, self.config.batch.accumulation)
        for micro, own in enumerate(shares):
            asked = time.perf_counter()
            batch = self.task.batch(self._share(own, rows, step), self.engine.device)
            self.window.waited(time.perf_counter() - asked)
            if micro == 0 and self._is_diagnostic(step):
                found = self.task.diagnose(batch, counts)
                self.tracker.log_metrics({f"train/{name}": value for name, value in found.items()}, step)
            seed_everything(self.config.seed, step, self.rank, micro)
            terms = self.task.terms(self.engine.forward, batch, counts)
            self.engine.backward(weighted_sum(terms, self.task.weights))
            self.window.add(terms, *self.task.tokens(batch))
            self.engine.step(self.plan.lr(step, self.config.optim))
        self.state.step, self.state.cursor = step, after
        self.window.end_step(time.perf_counter() - started)
        self.non_finite.check(self.engine.skipped_steps)

    def _share(self, own: np.ndarray, rows: np.ndarray, step: int) -> Share:
        """These rows; one of the global batch, as a filler, where the worker has none left."""
        taken = own if len(own) else rows[:1]
        return Share([self.split[int(row)] for row in taken], taken, step, fillers=0 if len(own) else 1)

    def _is_diagnostic(self, step: int) -> bool:
        return self.rank == 0 and (step == 1 or step % self.config.eval.every == 0)

    def _log_window(self) -> None:
        """Log the means since the last log: the only place where the loop waits for the accelerator."""
        values = self.window.close()
        if self.rank != 0:
            return
        step, terms = self.state.step, {k: v for k, v in values.items() if k in self.task.weights}
        loss = sum(self.task.weights[name] * value for name, value in terms.items())
        self.state.tokens += int(values["tokens"])
        metrics = {f"train/{name}": value for name, value in values.items() if name != "tokens"}
        metrics |= {"train/loss": loss, "train/lr": self.plan.lr(step, self.config.optim)}
        metrics |= {"train/grad_norm": self.engine.gradient_norm(), "train/epoch": self.state.cursor.epoch}
        metrics |= {"train/tokens": self.state.tokens, "train/skipped_steps": self.engine.skipped_steps}
        self.tracker.log_metrics(metrics, step)
        ray_metrics.publish({**metrics, "train/step": step}, self.config.name)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        self.log.line(f"step {step}/{self.plan.steps}  loss {loss:.4f}  {shown}  {values['tokens_per_s']:.0f} tokens/s")

    def _evaluate(self) -> dict[str, float]:
        """Measure the dev split; note in the state where the model is the best so far."""
        metrics, step = self.dev.evaluate(self.task, self.engine.device), self.state.step
        score = metrics.get(self.config.eval.metric, UNDEFINED)
        if self.state.best_metric is None or score > self.state.best_metric:
            self.state.best_metric, self.state.best_step = score, step
        if self.rank == 0:
            self.tracker.log_metrics({f"dev/{name}": value for name, value in metrics.items()}, step)
            record_evaluation(self.job.run, step, metrics)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            best = "  (best so far)" if self.state.best_step == step else ""
            self.log.line(f"step {step}/{self.plan.steps}  dev: {shown}{best}")
        return metrics

    def _checkpoint(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint, and publish its model where it is the best so far. metrics: of the dev split, or none."""
        import ray.train
        from ray.train import Checkpoint

        folder = self._write_checkpoint(metrics)
        if self.rank == 0 and self.state.best_step == self.state.step:
            checkpoints.publish(folder / "model", self.job.run / "model")
        ray.train.report(
            {**metrics, "step": self.state.step},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
        if self.rank == 0:
            checkpoints.retain(self.job.run, folder, self.config.keep_checkpoints)

    def _write_checkpoint(self, metrics: dict[str, float]) -> Path:
        """Write state and model of all workers; the manifest last. The same path on every worker."""
        name = [str(checkpoints.new_folder(self.job.run, self.state.step))] if self.rank == 0 else [None]
        dist.broadcast_object_list(name)
        folder = Path(str(name[0]))
        self.engine.save(folder)
        weights = self.engine.full_weights()
        if self.rank == 0:
            (folder / "model").mkdir()
            self.task.save(folder / "model", weights, self.state.step)
            (folder / "model" / CARD_FILE).write_text(self.task.card(self.state.step, metrics))
        dist.barrier()
        if self.rank == 0:
            score = metrics.get(self.config.eval.metric, UNDEFINED)
            checkpoints.commit(folder, {**self.state.to_json(), "score": score}, self.world)
            ray_metrics.checkpoint_written(self.config.name)
        dist.barrier()
        return folder

    def _resume(self) -> TrainState:
        """Load the checkpoint that the driver named, or, after a restart within the run, the newest whole one."""
        found: list[str | None] = [None]
        if self.rank == 0:
            checkpoints.remove_unfinished(self.job.run)
            newest, passed_over = checkpoints.newest_whole(self.job.run)
            for wrong in passed_over:
                self.log.line(f"passing over a damaged checkpoint: {wrong}")
            chosen = newest or self.job.resume_from
            found = [str(chosen) if chosen else None]
        dist.broadcast_object_list(found)
        if found[0] is None:
            return TrainState()
        folder = Path(found[0])
        stored = checkpoints.load_state(folder)
        if stored["world"] != self.world:
            raise UserError(f"{folder} was written by {stored['world']} workers and cannot be read by {self.world}.")
        self.engine.load(folder)
        state = TrainState.from_json(stored)
        if folder.parent != self.job.run:  # another run's best is no model of this one
            state.best_metric, state.best_step = None, 0
        if self.rank == 0:
            self.log.line(f"resuming from {folder} at step {state.step}")
            if state.best_step == state.step:  # the run may have ended before this model was published
                checkpoints.publish(folder / "model", self.job.run / "model")
        return state

    def start_tracking(self) -> Tracker:
        """MLflow from rank 0; a tracker that is off elsewhere."""
        uri, spool = self.job.tracking_uri if self.rank == 0 else "off", self.job.run / "mlflow-spool"
        tracker = Tracker(
            uri,
            self.config.tracking.experiment,
            self.config.name,
            run_id=last_run(spool),
            tags=self.job.tags,
            spool=spool,
        )
        for artifact in (self.job.run / "config.yaml", self.shards.folder / "manifest.json"):
            tracker.log_artifact(artifact)
        tracker.log_params(self.config)
        tracker.log_params({"global_batch": self.config.global_batch, "steps_planned": self.plan.steps})
        return tracker
