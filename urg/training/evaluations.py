"""What the dev split said over a run, in its folder: for whoever steers runs or draws their curves without MLflow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """One measurement of the dev split."""

    step: int
    """Optimizer steps done."""
    seconds: float
    """When, in seconds since the epoch."""
    metrics: dict[str, float]
    """Mean over the dev rows by name; a metric that no row defines is absent."""


def record_evaluation(run: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append an evaluation to the run's file."""
    line = json.dumps({"step": step, "seconds": time.time(), "metrics": dict(metrics)}).encode() + b"\n"
    with (run / EVALUATIONS).open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line  # a kill cut the last line off
        file.write(line)


def read_evaluations(run: Path) -> list[Evaluation]:
    """The evaluations of a run by step; [] before the first. A step that a resumed run repeated keeps its first one,
    as it does in MLflow; a line that a kill cut off is passed over."""
    found: dict[int, Evaluation] = {}
    try:
        lines = (run / EVALUATIONS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            evaluation = Evaluation(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found.setdefault(evaluation.step, evaluation)
    return [found[step] for step in sorted(found)]
