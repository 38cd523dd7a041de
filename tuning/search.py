"""Between Ray Tune and the ledger: which run comes next, and what becomes of those that end.

Tune's own searcher for Optuna keeps the study in memory and its map from trials to Tune's ids in a pickle that a kill
may outdate; a NaN leaves its trial open for ever. So Tune is told what to run by the ledger, which outlives both.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuning.blueprint import Unit, trial_name
from tuning.ledger import Ledger, Outcome, read_outcome
from tuning.space import Point
from tuning.trial import ENDED, NEVER, elapsed, reason_of

LOST = (
    "its process was lost, or a worker as it started, more often than `retries` allows: out of memory, or its node is "
    "gone."
)
BASE_FAILED = (
    "the base's own point, trial 0, failed ({}): the sweep ends here, and what it has tried stays. Once that is "
    "mended, the same command with --retry_failed true goes on; another base needs another --name."
)
BASE_MISSING = (
    "the base's own point, trial 0, failed ({}): the sweep goes on with the others, and nothing is compared with it; "
    "--retry_failed true tries it again."
)


@dataclass
class Pending:
    """A trial that has begun and whose shards may still be prepared."""

    number: int
    settings: Future[list[dict[str, Any]]]


class LedgerSearcher(Searcher):
    """Hands out the ledger's trials to Tune: those that a kill interrupted first, then new ones within the budgets.

    line_up: the settings of a trial's runs (see `run_unit`), by number and point; called in a thread, since it may have
    shards to prepare. settle: called with each trial that has ended, and how.
    """

    def __init__(
        self,
        ledger: Ledger,
        line_up: Callable[[int, Point], list[dict[str, Any]]],
        settle: Callable[[int, Outcome], None],
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self._ledger, self._line_up, self._settle = ledger, line_up, settle
        self._config = ledger.blueprint.config
        self._interrupted = deque(ledger.interrupted())
        self._ready: deque[dict[str, Any]] = deque()
        self._running: dict[str, Unit] = {}
        self._pending: Pending | None = None
        self._pool = ThreadPoolExecutor(1)
        self._since = time.monotonic()
        self.refusal: str | None = None
        self.stopped = False
        self._said_of_base = False
        self._heed_base()

    def _heed_base(self) -> None:
        """Where the base's own point has failed: refuse to go on if no other trial has finished, say it if one has."""
        base = next((trial for trial in self._ledger.ended() if trial.number == 0), None)
        if base is None or base.state.name != "FAIL" or not self._config.base_first:
            return
        reason = base.user_attrs.get("reason", "").rstrip(".")
        alone = self._ledger.best() is None
        self.refusal = BASE_FAILED.format(reason) if alone else None
        if not alone and not self._said_of_base:
            self._said_of_base = True
            print(BASE_MISSING.format(reason), flush=True)

    def suggest(self, trial_id: str) -> Any:
        """The next run's settings; None while its shards are being prepared, or while a run is under way that may yet
        show that not every trial fails; FINISHED where there is none."""
        if self.stopped:
            return Searcher.FINISHED
        if self.refusal and self._running:
            return None
        if not self._ready:
            if self._pending is None and not self._begin():
                return Searcher.FINISHED
            self._collect()
        if not self._ready:
            return None
        settings = self._ready.popleft()
        self._running[trial_id] = _unit(settings)
        return settings

    def stop(self) -> list[Path]:
        """Begin nothing more; the folders of the runs that are under way. From any thread."""
        self.stopped = True
        return [self._run(unit) for unit in list(self._running.values())]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note of a run that has ended; nothing where Tune was interrupted and the run has not."""
        unit = self._running.pop(trial_id, None)
        if unit is None:
            return
        if error and read_outcome(self._run(unit)) is None:
            Outcome("failed", reason=LOST).write(self._run(unit))
        self._close(unit.number)

    def close(self) -> list[int]:
        """Count the time; the trials that are still under way, because Tune was interrupted."""
        self._count_time()
        self._pool.shutdown(wait=False, cancel_futures=True)
        return self._ledger.interrupted()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new session reads the ledger."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Searcher, ())  # Tune pickles its settings; nobody reads that

    def _begin(self) -> bool:
        """Begin a trial, or take up one that was interrupted; False where there is nothing left to do."""
        while self._interrupted and not self.refusal:
            number = self._interrupted.popleft()
            if not self._close(number):
                return self._start(number)
        self._count_time()
        if self.refusal or self._ledger.begun() >= self._ledger.blueprint.trials:
            return False
        if self._config.hours is not None and self._ledger.hours() >= self._config.hours:
            return False
        if self._config.searcher == "grid" and not self._ledger.waiting():
            return False
        return self._start(self._ledger.ask())

    def _start(self, number: int) -> bool:
        point = self._ledger.point(number)
        self._pending = Pending(number, self._pool.submit(self._line_up, number, point))
        return True

    def _collect(self) -> None:
        """Line up the runs of the pending trial, if its shards are there; fail it if they cannot be made."""
        if self._pending is None or not self._pending.settings.done():
            return
        pending, self._pending = self._pending, None
        error = pending.settings.exception()
        if error is None:
            self._ready += [one for one in pending.settings.result() if read_outcome(self._run(_unit(one))) is None]
            return
        for unit in self._ledger.blueprint.units(pending.number):
            Outcome("failed", reason=reason_of(error)).write(self._run(unit))
        self._close(pending.number)

    def _run(self, unit: Unit) -> Path:
        return self._ledger.blueprint.trials_folder / unit.name

    def _close(self, number: int) -> bool:
        """Tell the study of a trial all of whose runs have ended; whether they have."""
        outcome = self._ledger.tell(number)
        if outcome is None:
            return False
        self._count_time()
        self._heed_base()
        if outcome.reason.startswith(NEVER) and all(t.state.name == "FAIL" for t in self._ledger.ended()):
            self.refusal = f"{outcome.reason} ({trial_name(number)})"
        self._settle(number, outcome)
        return True

    def _count_time(self) -> None:
        now = time.monotonic()
        self._ledger.add_seconds(now - self._since)
        self._since = now


class LedgerScheduler(FIFOScheduler):
    """Records each evaluation in the ledger, and ends the trials that its pruner gives up."""

    def __init__(self, ledger: Ledger, steps: Callable[[Point], int]) -> None:
        super().__init__()
        self._ledger, self._steps = ledger, steps

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP where the trial is not among the best of its rung. The base's own point goes to its end, and a trial at
        its last step ends by itself."""
        settings, blueprint = trial.config, self._ledger.blueprint
        unit = _unit(settings)
        if ENDED in result:
            if told := json.loads(result[ENDED]):
                Outcome(**told).write(blueprint.trials_folder / unit.name)
            trial.max_failures = 0  # those that Tune would allow are for a process that is lost
            return TrialScheduler.CONTINUE
        if unit.fold is not None or len(blueprint.config.objective) > 1:
            return TrialScheduler.CONTINUE
        step, value = int(result["step"]), float(result["objective"])
        given_up = self._ledger.report(unit.number, step, value)
        is_base = blueprint.config.base_first and unit.number == 0  # what all others are compared with
        if not given_up or is_base or step >= self._steps(settings["point"]):
            return TrialScheduler.CONTINUE
        run = blueprint.trials_folder / unit.name
        Outcome("pruned", [value], step, f"ended by ASHA at step {step}", elapsed(run, time.time())).write(run)
        return TrialScheduler.STOP

    def __reduce__(self) -> tuple[Any, ...]:
        return (FIFOScheduler, ())


def _unit(settings: Mapping[str, Any]) -> Unit:
    return Unit(settings["number"], settings["fold"])
