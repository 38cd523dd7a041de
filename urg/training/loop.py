"""The training loop of one worker: train a step, or write what is due, over an explicit state.

Every random choice is keyed by (seed, step, worker), so that a resumed run repeats an uninterrupted one bit for bit,
dropout included. What the loop trains on is known from the state too, and made by another thread, one micro-batch
ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet
from urg.batching import Cursor, GlobalBatches, micro_batches
from urg.model_card import CARD_FILE
from urg.objective import weighted_sum
from urg.progress import RunLog
from urg.read_ahead import read_ahead
from urg.tracking import Tracker, last_run, ray_metrics
from urg.training.checkpoints import load_state
from urg.training.dev import DevSet
from urg.training.engine import Engine
from urg.training.guard import NonFiniteGuard
from urg.training.notices import Notice, Notices
from urg.training.plan import Plan, open_data, training_and_dev, training_rows
from urg.training.process import prepare_process, seed_everything
from urg.training.saving import Saver, agree_to_go_on, find_checkpoint
from urg.training.state import UNDEFINED, Job, Outcome, Refused, TrainState
from urg.training.task import Share, Task, build_task
from urg.training.watchdog import Watchdog, watching
from urg.training.window import Window

Found = TypeVar("Found")


def train_worker(settings: dict[Any, Any]) -> Outcome:
    """The function that Ray Train runs on each worker; `settings["job"]` says what to do. The driver gets rank 0's
    outcome."""
    import ray.train

    job: Job = settings["job"]
    context = ray.train.get_context()
    prepare_process(job.config)
    rank, log = context.get_world_rank(), RunLog(job.run / "train.log")
    hung = f"worker {rank} is ended, to start anew from the last checkpoint: "
    with watching(job.config.engine.timeout_s, lambda reason: log.line(hung + reason)) as watchdog:
        try:
            return _train(job, rank, context.get_world_size(), watchdog)
        except Refused as refused:
            return Outcome(refusal=str(refused))


def _train(job: Job, rank: int, world: int, watchdog: Watchdog) -> Outcome:
    """A worker's part of a run, from opening the data to its end."""
    trainer = Trainer(job, rank, world, *_agreed(_open(job)), watchdog)
    tracker = _agreed(trainer.start_tracking())
    try:
        outcome = trainer.fit(tracker)
        tracker.close("FINISHED" if outcome == Outcome() else "KILLED")
    except BaseException:
        if trainer.saver.is_ours():  # else another start goes on with the same run in MLflow
            tracker.close("FAILED")
        raise
    return outcome


def _agreed(found: Found | str) -> Found:
    """What this worker has found; raises Refused on all workers where any has a reason why it has nothing."""
    agree_to_go_on(found if isinstance(found, str) else None)
    assert not isinstance(found, str)
    return found


def _open(job: Job) -> tuple[ShardSet, Task] | str:
    """The data and what to train; or why this worker, on its node, cannot have them."""
    try:
        shards = open_data(job.config)
        return shards, build_task(job.config, shards)
    except UserError as error:
        return str(error)


@dataclass(frozen=True)
class MicroBatch:
    """What a worker trains on at once."""

    number: int
    """Of the step's, from 0."""
    is_last: bool
    """Of the step's."""
    batch: Any
    """The task's, on the device."""
    counts: Any
    """The task's, of the step's global batch."""
    after: Cursor
    """Where the step leaves the data."""


class Trainer:
    """A worker's part of a run."""

    def __init__(self, job: Job, rank: int, world: int, shards: ShardSet, task: Task, watchdog: Watchdog) -> None:
        self.job, self.config, self.rank, self.world = job, job.config, rank, world
        self.watchdog = watchdog
        self.log = RunLog(job.run / "train.log")
        self.shards, self.task = shards, task
        self.split, _ = training_and_dev(self.config, self.shards)
        self.plan = Plan.of(self.config, training_rows(self.config, self.split))
        self.batches = GlobalBatches(self.plan.rows, self.config.global_batch, self.config.seed)
        found = find_checkpoint(job, rank, self.log)
        stored = load_state(found) if found else {"world": world}
        self.engine = Engine(self.task.module, self.config, world, resized=stored["world"] != world)
        self.dev = DevSet(self.config, self.shards, rank, world)
        self.saver = Saver(job, rank, world, task, self.engine, self.log, watchdog.moved)
        self.state = self.saver.load(found, stored) if found else TrainState()
        self.window = Window(self.engine.device)
        self.non_finite = NonFiniteGuard(self.engine.skipped_steps, job.run)
        self.notices = Notices(job.run, rank, self.config.engine.timeout_s)

    def fit(self, tracker: Tracker) -> Outcome:
        """Train until the last step or until told to stop, evaluating and checkpointing on the way."""
        self.tracker = tracker
        with closing(read_ahead(self._micro_batches())) as ahead:
            return self._fit(ahead)

    def _fit(self, ahead: Iterator[MicroBatch]) -> Outcome:
        self.notice, saves = Notice.GO_ON, self.state.evaluation_due
        while saves or self.state.step < self.plan.steps:
            last = self.state.step == self.plan.steps
            if saves and (last or not self.non_finite.in_a_row):  # else put off: the weights may be beyond repair
                self.saver.write(self.state, self._evaluate_if_due())
                if self.notice and self._stops_on(self.notice):
                    return Outcome(stopped_at=self.state.step)
                self.notice, saves = Notice.GO_ON, self.state.evaluation_due
                continue
            self._train_step(ahead)
            step, last = self.state.step, self.state.step == self.plan.steps
            if step % self.config.tracking.log_every == 0 or last:
                self._log_window()
            self._hears_nothing()
            self.state.evaluation_due |= step % self.config.eval.every == 0 or last
            saves |= self.state.evaluation_due or bool(self.notice) or self._is_due(step)
        self.tracker.log_artifact(self.job.run / "model" / CARD_FILE)
        return Outcome()

    def _hears_nothing(self) -> bool:
        """Take in what the workers were told; whether that is nothing since the last checkpoint. Collective."""
        self.watchdog.moved()
        self.notice = max(self.notice, self.notices.listen())
        return not self.notice

    def _is_due(self, step: int) -> bool:
        return bool(self.config.checkpoint_every) and step % int(self.config.checkpoint_every or 1) == 0

    def _stops_on(self, notice: Notice) -> bool:
        """Say in the log what was heard; whether it was to stop."""
        heard = "told to stop" if notice is Notice.STOP else "a node will be taken away"
        if self.rank == 0:
            self.log.line(f"{heard}: wrote a checkpoint at step {self.state.step}")
        return notice is Notice.STOP

    def _train_step(self, ahead: Iterator[MicroBatch]) -> None:
        """One optimizer step over one global batch."""
        started, step, micro = time.perf_counter(), self.state.step + 1, None
        while micro is None or not micro.is_last:
            asked = time.perf_counter()
            micro = next(ahead)
            self.window.waited(time.perf_counter() - asked)
            self.engine.begin(last=micro.is_last)
            if micro.number == 0 and self._is_diagnostic(step):
                found = self.task.diagnose(micro.batch, micro.counts)
                self.tracker.log_metrics({f"train/{name}": value for name, value in found.items()}, step)
            seed_everything(self.config.seed, step, self.rank, micro.number)
            terms = self.task.terms(self.engine.forward, micro.batch, micro.counts)
            self.engine.backward(weighted_sum(terms, self.task.weights))
            self.window.add(terms, *self.task.tokens(micro.batch))
            self.engine.step(self.plan.lr(step, self.config.optim))
        self.state.step, self.state.cursor = step, micro.after
        self.window.end_step(time.perf_counter() - started)
        self.non_finite.check(step, self.engine.skipped_steps, last=step == self.plan.steps)

    def _micro_batches(self) -> Iterator[MicroBatch]:
        """All that is left of the run. Another thread goes through it, so that it reads the state at first only."""
        cursor, accumulation = self.state.cursor, self.config.accumulation(self.world)
        for step in range(self.state.step + 1, self.plan.steps + 1):
            rows, cursor = self.batches.at(cursor)
            counts, tokens = self.task.counts(self.split, rows), self.split.encoder_tokens[rows]
            shares = micro_batches(rows, tokens, self.rank, self.world, accumulation, self.config.batch.tokens)
            for number, own in enumerate(shares):
                batch = self.task.batch(self._share(own, rows, step), self.engine.device)
                yield MicroBatch(number, number == len(shares) - 1, batch, counts, cursor)

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

    def _evaluate_if_due(self) -> dict[str, float]:
        """Metrics of the dev split, where they are due. A notice puts them off, even in their midst, until the
        checkpoint, which must be in time, is written: there or where it is resumed they are measured at the same
        step."""
        if not self.state.evaluation_due or self.notice:
            return {}
        metrics = self.dev.evaluate(self.task, self.engine.device, self._hears_nothing)
        if metrics is None:
            return {}
        self.state.evaluation_due = False
        self._note_evaluation(metrics)
        return metrics

    def _note_evaluation(self, metrics: dict[str, float]) -> None:
        """Log what dev has measured, and note in the state where the model is the best so far. Of a run that measures
        the part that cross-validation holds out, the newest counts as that: what is tested on must not choose."""
        step = self.state.step
        score, newest = metrics.get(self.config.eval.metric, UNDEFINED), self.config.data.measures_held_out
        # Where no metric is defined, the newest.
        if newest or self.state.best_metric is None or score >= self.state.best_metric:
            self.state.best_metric, self.state.best_step = score, step
        if self.rank == 0:
            self.tracker.log_metrics({f"dev/{name}": value for name, value in metrics.items()}, step)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            best = "  (best so far)" if self.state.best_step == step and not newest else ""
            self.log.line(f"step {step}/{self.plan.steps}  dev: {shown}{best}")

    def start_tracking(self) -> Tracker | str:
        """MLflow from rank 0, a tracker that is off elsewhere; or why there can be none."""
        uri, spool = self.job.tracking_uri if self.rank == 0 else "off", self.job.run / "mlflow-spool"
        experiment, name, tags = self.config.tracking.experiment, self.config.name, self.job.tags
        try:
            tracker = Tracker(uri, experiment, name, run_id=last_run(spool), tags=tags, spool=spool)
        except UserError as error:
            return str(error)
        for artifact in (self.job.run / "config.yaml", self.shards.folder / "manifest.json"):
            tracker.log_artifact(artifact)
        tracker.log_params(self.config)
        tracker.log_params({"global_batch": self.config.global_batch, "steps_planned": self.plan.steps})
        return tracker
