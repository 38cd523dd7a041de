"""Figures of a training for Prometheus, by way of Ray's metrics: each node's Ray serves them, Prometheus asks for them.

publish({"train/tokens_per_s": 1200.0, ...}, run="sample")        # at each log, on rank 0
checkpoint_written(run="sample")                                  # when a checkpoint is whole
checkpoint_written("sample", folder / "manifest.json")            # when a run goes on from one
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

GAUGES = {
    "train/step": ("urg_step", "Optimizer steps done."),
    "train/tokens_per_s": ("urg_tokens_per_second", "Real tokens, of encoder and decoder, over all workers."),
    "train/useful_tokens": ("urg_useful_token_share", "Share of the computed tokens that are real, 0 to 1."),
    "train/step_seconds": ("urg_step_seconds", "Mean seconds of an optimizer step."),
    "train/data_wait_seconds": ("urg_data_wait_seconds", "Mean seconds of a step that the worker waits for data."),
    "train/loss": ("urg_loss", "Weighted sum of the loss terms."),
    "train/rank": ("urg_loss_rank", "Loss term: ranking."),
    "train/kl": ("urg_loss_kl", "Loss term: divergence of the two fusions."),
    "train/ce": ("urg_loss_ce", "Loss term: cross-entropy with the best candidates."),
    "train/ce_last": ("urg_loss_ce_last", "Loss term: cross-entropy with the last candidates."),
    "train/grad_norm": ("urg_gradient_norm", "Norm of the gradient before clipping."),
    "train/skipped_steps": ("urg_skipped_steps", "Steps that were skipped for gradients that are not finite."),
}
"""Prometheus' name and what it is, by the name in MLflow. A name that a training does not log is not published."""
CHECKPOINT_TIME = (
    "urg_checkpoint_time_seconds",
    "When the newest whole checkpoint was written, before the first one when the run was started, in Unix time.",
)
"""Not its age: a training that hangs would go on showing the last one. Dashboards subtract it from now."""


def publish(metrics: Mapping[str, float], run: str) -> None:
    """Set the gauges that `metrics` has values for; the others keep theirs. Does nothing outside Ray."""
    for name, value in metrics.items():
        if name in GAUGES:
            _set(*GAUGES[name], value, run)


def checkpoint_written(run: str, file: Path | None = None) -> None:
    """Note that a whole checkpoint was written now, or when `file` was: a run that fails again and again before its
    next one would else show none. Does nothing outside Ray, or where the file is not there."""
    with suppress(OSError):
        _set(*CHECKPOINT_TIME, file.stat().st_mtime if file else time.time(), run)


def _set(name: str, description: str, value: float, run: str) -> None:
    import ray

    if ray.is_initialized():
        _gauge(name, description).set(value, tags={"run": run})


@functools.cache
def _gauge(name: str, description: str) -> Gauge:
    from ray.util.metrics import Gauge

    return Gauge(name, description=description, tag_keys=("run",))
