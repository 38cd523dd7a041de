"""Failed trials that are to be tried again: opened in the study, their outcomes set aside.

A trial keeps its number, its point, its folder, and so its checkpoints and its run in MLflow. Optuna has no way to open
a trial that has ended; its table of trials is the only place where that stands.
"""

from __future__ import annotations

import contextlib
import sqlite3

from tuning.blueprint import Blueprint, trial_name
from tuning.ledger import EARLIER, OUTCOME, STUDY, earlier_outcomes, read_outcome
from tuning.tracking import SETTLED


def reopen_failed(blueprint: Blueprint) -> list[int]:
    """Make every failed trial one that was interrupted; their numbers. Before anybody opens the study, which remembers
    ended trials. A kill within leaves trials whose old outcome stands: they count as failed again, and may be tried
    again."""
    study = blueprint.folder / STUDY
    if not study.exists():
        return []
    with contextlib.closing(sqlite3.connect(study)) as database, database:
        numbers = [number for (number,) in database.execute("SELECT number FROM trials WHERE state = 'FAIL'")]
        database.execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE state = 'FAIL'")
    for number in numbers:
        (blueprint.trials_folder / trial_name(number) / SETTLED).unlink(missing_ok=True)
        for unit in blueprint.units(number):
            run = blueprint.trials_folder / unit.name
            outcome = read_outcome(run)
            if outcome is not None and outcome.state != "finished":
                (run / OUTCOME).rename(run / EARLIER.format(earlier_outcomes(run) + 1))
    return sorted(numbers)
