"""What a run is told and where it stands: plain data that travels between driver, workers and checkpoints."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from urg.batching import Cursor
from urg.config import TrainConfig

UNDEFINED = -1e30
"""The score of a checkpoint that was not evaluated, or whose dev rows do not define the metric: never the best."""
RESUMES = 75
"""Exit code of a run that stopped on notice and that the same command resumes (EX_TEMPFAIL: try again)."""

IDENTITY = "run.json"
"""What the driver writes into a run's folder before its workers start: its configuration, its data, and the
fencing token of this start."""


def fencing_token(run: Path) -> str | None:
    """The token of the last start of the run in this folder; None where the folder has none, or cannot be read."""
    try:
        return str(json.loads((run / IDENTITY).read_text()).get("fencing_token", ""))
    except (OSError, ValueError):
        return None


class Refused(Exception):
    """The workers cannot go on and no retry would help. The message is a sentence for the user; raised on all of them
    alike."""


class Stopped(Exception):
    """A run was told to stop, and did so, with a checkpoint where there was something to save. The message says what
    resumes it."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, as its workers tell the driver: with neither, at its last step."""

    refusal: str | None = None
    """Why it cannot go on and no retry would help: a sentence for the user."""
    stopped_at: int | None = None
    """The step of the checkpoint that it wrote when it was told to stop."""


@dataclass
class TrainState:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    best_metric: float | None = None
    best_step: int = 0
    tokens: int = 0
    evaluation_due: bool = False
    """Whether the dev split is still to be measured at this step."""

    def to_json(self) -> dict[str, Any]:
        """As it is written to train_state.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> TrainState:
        """The inverse of `to_json`; other keys are ignored."""
        known = {f.name: stored[f.name] for f in dataclasses.fields(cls) if f.name in stored}
        return cls(**{**known, "cursor": Cursor(**stored["cursor"])})


@dataclass(frozen=True)
class Job:
    """What the driver hands to each worker: all paths absolute."""

    config: TrainConfig
    run: Path
    tracking_uri: str
    resume_from: Path | None
    tags: dict[str, str]
    fencing_token: str = ""
    """Of this start of the run. Once the run's folder has another one, this start's workers write nothing more."""
