"""Writing and loading checkpoints, by all workers of a run together; checkpoints.py says what one is made of."""

from __future__ import annotations

import functools
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from urg.model_card import CARD_FILE
from urg.progress import RunLog
from urg.tracking import ray_metrics
from urg.training import checkpoints
from urg.training.engine import Engine, convert_for_any_number_of_workers
from urg.training.evaluations import record_evaluation
from urg.training.state import IDENTITY, Job, Refused, TrainState, fencing_token
from urg.training.task import Task


def agree_to_go_on(refusal: str | None) -> None:
    """Raise Refused on all workers where any has a reason: one that went on alone would wait for the others."""
    refusals: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refusals, refusal)
    for found in filter(None, refusals):
        raise Refused(found)


def find_checkpoint(job: Job, rank: int, log: RunLog) -> Path | None:
    """The newest whole checkpoint of the run, else the one that the driver named; the same on all workers. Raises
    Refused where a worker does not see the run's folder: it would take every checkpoint for damaged."""
    _require_shared(job)
    folders: list[list[Path]] = [[]]
    if rank == 0:
        checkpoints.remove_unfinished(job.run)
        folders = [checkpoints.newest_first(job.run)]
    dist.broadcast_object_list(folders)
    newest, passed_over = checkpoints.newest_whole(folders[0], functools.partial(_damage, rank))
    if rank == 0:
        for wrong in passed_over:
            log.line(f"passing over a damaged checkpoint: {wrong}")
    return newest or job.resume_from


def _require_shared(job: Job) -> None:
    """Raise Refused on all workers where one does not find in the run's folder what the driver has written there."""
    is_shared = checkpoints.seen(lambda: fencing_token(job.run) == job.fencing_token)
    refusal = f"node {socket.gethostname()} has not the run's folder {job.run} that the others have: storage "
    refusal += f"{job.run.parent} is not shared by all nodes. Give a folder that they share (NFS, EFS, FSx, Filestore)."
    agree_to_go_on(None if is_shared else refusal)


def _damage(rank: int, folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None; each worker looks at its share of the files."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, checkpoints.damage(folder, rank, len(found)))
    return next(filter(None, found), None)


def _merged(own: checkpoints.Entries) -> checkpoints.Entries:
    """The entries of all workers."""
    found: list[checkpoints.Entries] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return {name: entry for entries in found for name, entry in entries.items()}


class Saver:
    """A worker's part in the checkpoints of a run. Every method is collective but `is_ours`.

    progressed: called after each part of a checkpoint.
    """

    def __init__(
        self, job: Job, rank: int, world: int, task: Task, engine: Engine, log: RunLog, progressed: Callable[[], None]
    ) -> None:
        self.job, self.rank, self.world, self.task = job, rank, world, task
        self.engine, self.log, self.progressed = engine, log, progressed
        if rank == 0:  # until there is a checkpoint its age is the start's, which the driver noted
            ray_metrics.checkpoint_written(job.config.name, job.run / IDENTITY)

    def write(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Write state and model of all workers, the manifest last; publish the model where it is the best so far, and
        delete what need not be kept. metrics: of the dev split, or none. Raises Refused where a disk is full; the
        checkpoint before is then as it was."""
        import ray.train
        from ray.train import Checkpoint

        name = [str(checkpoints.new_folder(self.job.run, state.step))] if self.rank == 0 else [None]
        dist.broadcast_object_list(name)
        folder = Path(str(name[0]))
        own: checkpoints.Entries = {}
        try:
            self._together(folder, lambda: self._begin(folder))
            self._together(folder, lambda: own.update(checkpoints.entries(folder, self.engine.save(folder))))
            known = _merged(own)
            weights = self.engine.full_weights()
            self._together(folder, lambda: self._write_model(folder, weights, state, metrics))
            self._together(folder, lambda: self._finish(folder, state, metrics, known))
        except Refused:
            self._delete_unfinished(folder)
            raise
        ray.train.report(
            {**metrics, "step": state.step},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
        if self.rank == 0 and self.is_ours():
            checkpoints.retain(self.job.run, folder, self.job.config.keep_checkpoints)

    def _begin(self, folder: Path) -> None:
        self._require_ours()
        (folder / "state").mkdir(parents=True, exist_ok=True)

    def _require_ours(self) -> None:
        """Raise Refused where the run has been started anew: the workers of a driver that was killed train on until Ray
        ends them, on a node that is cut off for a minute, and must change nothing of what the newer ones write."""
        if self.rank == 0 and not self.is_ours():
            raise Refused(f"the same command was given again for {self.job.run}: this start of the run writes no more.")

    def is_ours(self) -> bool:
        """Whether no other start of the run has come since. Storage that does not answer well tells of none."""
        return fencing_token(self.job.run) in (None, self.job.fencing_token)

    def _write_model(
        self, folder: Path, weights: dict[str, Tensor], state: TrainState, metrics: dict[str, float]
    ) -> None:
        if self.rank == 0:
            (folder / "model").mkdir()
            self.task.save(folder / "model", weights, state.step)
            (folder / "model" / CARD_FILE).write_text(self.task.card(state.step, metrics))

    def _finish(self, folder: Path, state: TrainState, metrics: dict[str, float], known: checkpoints.Entries) -> None:
        self._require_ours()
        if self.rank == 0:
            checkpoints.commit(folder, state.to_json(), self.world, known)
            self._require_ours()  # checksums take a while
            ray_metrics.checkpoint_written(self.job.config.name)
            if metrics:
                record_evaluation(self.job.run, state.step, metrics)
            if state.best_step == state.step:
                checkpoints.publish(folder / "model", self.job.run / "model")

    def _together(self, target: Path, write: Callable[[], object]) -> None:
        """Call `write`, which writes to `target`, on every worker. Where one refuses, or its disk is full, raise
        Refused on all."""
        refusal = None
        try:
            write()
        except Refused as refused:
            refusal = str(refused)
        except Exception as error:
            if not checkpoints.is_for_want_of_room(error, self.job.run):
                raise
            refusal = (
                f"no room for {target}: {error}. The checkpoint before it is whole: make room, and the same command "
                "goes on from there."
            )
        agree_to_go_on(refusal)
        self.progressed()

    def _delete_unfinished(self, folder: Path) -> None:
        if self.rank == 0 and not (folder / checkpoints.MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, folder: Path, stored: dict[str, Any]) -> TrainState:
        """Load a checkpoint, whatever the number of workers that wrote it. stored: its state. Raises Refused where a
        disk is full."""
        if self.rank == 0 and folder.parent == self.job.run:  # another run's has any age
            begun = (folder / checkpoints.MANIFEST, self.job.run / IDENTITY)  # a pause between two starts costs no work
            ray_metrics.checkpoint_written(self.job.config.name, max(begun, key=lambda file: file.stat().st_mtime))
        if self.engine.resized:
            self._load_resized(folder)
        else:
            self.engine.load(folder)
        state = TrainState.from_json(stored)
        if folder.parent != self.job.run:  # another run's best is no model of this one
            state.best_metric, state.best_step, state.evaluation_due = None, 0, False
        if self.rank == 0:
            workers = f"{stored['world']} workers" + (f", now {self.world}" if stored["world"] != self.world else "")
            self.log.line(f"resuming from {folder} at step {state.step}, written by {workers}")
        self._together(self.job.run / "model", lambda: self._publish_again(folder, state))
        return state

    def _load_resized(self, folder: Path) -> None:
        """Load what another number of workers wrote, by way of a copy that any number can load."""
        scratch = self.job.run / checkpoints.RESIZED
        try:
            self._together(scratch, lambda: self._convert(folder, scratch))
            self.engine.load(scratch)
            dist.barrier()
        finally:
            if self.rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)

    def _convert(self, folder: Path, scratch: Path) -> None:
        if self.rank == 0:
            convert_for_any_number_of_workers(folder, scratch)

    def _publish_again(self, folder: Path, state: TrainState) -> None:
        """The run may have ended before its best model was published."""
        if self.rank == 0 and state.best_step == state.step:
            checkpoints.publish(folder / "model", self.job.run / "model")
