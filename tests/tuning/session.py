"""A session of a sweep without Ray and without training, which may be killed at any of its events."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from typing import Any

from tuning.blueprint import Unit, draw_up
from tuning.config import SweepConfig
from tuning.ledger import Ledger
from tuning.search import LedgerScheduler, LedgerSearcher
from tuning.trial import SESSIONS, counted
from urg.training.evaluations import read_evaluations, record_evaluation


class Killed(BaseException):
    """A SIGKILL, as far as one process can play it."""


class Session:
    """Plays Tune and the trials' processes against a searcher, and dies after `lives` events."""

    def __init__(self, config: SweepConfig, lives: float, settled: list[int], runs: Counter[str]) -> None:
        blueprint = draw_up(config)
        blueprint.trials_folder.mkdir(parents=True, exist_ok=True)
        self.ledger, self.lives, self.runs = Ledger.open(blueprint, steps=8), lives, runs
        self.searcher = LedgerSearcher(self.ledger, self._line_up, lambda number, outcome: settled.append(number))
        self.scheduler = LedgerScheduler(self.ledger, lambda point: 8)

    def _line_up(self, number: int, point: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"number": u.number, "fold": u.fold, "point": point} for u in self.ledger.blueprint.units(number)]

    def _event(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise Killed

    def play(self) -> None:
        """One trial at a time, until the searcher has no more."""
        index = 0
        while (settings := self.searcher.suggest(f"tune-{index}")) != "FINISHED":
            if settings is None:
                continue
            self._event()
            self._trial(f"tune-{index}", settings)
            index += 1
        self.searcher.close()

    def _trial(self, tune_id: str, settings: dict[str, Any]) -> None:
        unit = Unit(settings["number"], settings["fold"])
        run = self.ledger.blueprint.trials_folder / unit.name
        run.mkdir(exist_ok=True)
        (run / SESSIONS).write_text(f"{time.time()}\n")
        score = -abs(math.log10(settings["point"]["optim.lr"]) + 2)
        trial: Any = type("Trial", (), {"config": settings})
        for step in (2, 4, 6, 8):
            if step not in [evaluation.step for evaluation in read_evaluations(run)]:
                record_evaluation(run, step, {"label": score * 8 / step})
            self._event()
            if self.scheduler.on_trial_result(None, trial, {"step": step, "objective": score * 8 / step}) == "STOP":
                break
        else:
            dataclasses.replace(counted(read_evaluations(run), ["label"]), seconds=8.0).write(run)
        self.runs[unit.name] += 1
        self._event()
        self.searcher.on_trial_complete(tune_id, {"step": step})
