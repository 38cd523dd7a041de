"""What a run is told and where it stands: plain data that travels between driver, workers and checkpoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from urg.batching import Cursor
from urg.config import TrainConfig

REFUSAL = "refused.txt"
"""File in the run folder where workers say why they cannot train, for the driver to show."""


@dataclass
class TrainState:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    best_metric: float | None = None
    best_step: int = 0
    tokens: int = 0

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
