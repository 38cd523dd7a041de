"""The comparison of accounts, which other tests rely on: silent where all agree, and not where one of them is off."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tuning.accounts import disagreements
from tuning.blueprint import Unit, draw_up, trial_name
from tuning.config import SweepConfig
from tuning.cost import cost
from tuning.ledger import Ledger, Outcome
from tuning.tracking import SweepTracking
from urg.tracking import Tracker
from urg.training.evaluations import record_evaluation

Make = Callable[..., SweepConfig]


@pytest.fixture
def swept(make_sweep: Make) -> tuple[Path, str]:
    """The folder and MLflow of a sweep of two trials in which all accounts agree."""
    blueprint = draw_up(make_sweep(overrides={"tracking.uri": None}))
    blueprint.trials_folder.mkdir(parents=True)
    ledger = Ledger.open(blueprint, 4)
    tracking = SweepTracking(ledger)
    begun = time.time()
    for number, state in enumerate(("finished", "pruned")):
        ledger.point(ledger.ask())
        run = blueprint.trials_folder / trial_name(number)
        with Tracker(
            blueprint.tracking_uri, "tiny", run.name, spool=run / "mlflow-spool", tags=tracking.tags(Unit(number))
        ) as tracker:
            tracker.log_metrics({"dev/label": 0.5}, 2)
        record_evaluation(run, 2, {"label": 0.5})
        ledger.report(number, 2, 0.5)
        outcome = Outcome(state, [0.5], 2)  # type: ignore[arg-type]
        outcome.write(run)
        ledger.tell(number)
        tracking.settle(number, outcome)
    tracking.close([], {})
    _tune(blueprint.folder, begun, {trial_name(n): "TERMINATED" for n in range(2)})
    return blueprint.folder, blueprint.tracking_uri


def _tune(folder: Path, begun: float, states: dict[str, str]) -> None:
    """What a session of Tune leaves."""
    session = folder / "tune" / f"session-{len(list(folder.glob('tune/*')))}"
    session.mkdir(parents=True)
    data = [(json.dumps({"relative_logdir": name, "status": status}), "") for name, status in states.items()]
    stored = {"trial_data": data, "runner_data": {"_start_time": begun}}
    (session / "experiment_state-1.json").write_text(json.dumps(stored))


def _twice_in_mlflow(folder: Path, uri: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    client.create_run(client.get_experiment_by_name("tiny").experiment_id, run_name="trial-0002")


def _a_point_too_many(folder: Path, uri: str) -> None:
    record_evaluation(folder / "trials" / "trial-0000", 4, {"label": 0.6})


def _another_outcome(folder: Path, uri: str) -> None:
    path = folder / "trials" / "trial-0000" / "outcome.json"
    path.write_text(path.read_text().replace("0.5", "0.7"))


def _run_again(folder: Path, uri: str) -> None:
    _tune(folder, time.time() + 60, {"trial-0001": "RUNNING"})


def _ended_twice(folder: Path, uri: str) -> None:
    _tune(folder, 0.0, {"trial-0001": "TERMINATED"})


def _stopped_before(folder: Path, uri: str) -> None:
    """No damage: a session that was told to stop saw the trial end without an outcome."""
    _ended_twice(folder, uri)
    for path in (folder / "tune" / "session-1").glob("*.json"):
        os.utime(path, (time.time() - 600,) * 2)


def _unended(folder: Path, uri: str) -> None:
    for path in folder.glob("tune/*/*.json"):
        path.write_text(path.read_text().replace("TERMINATED", "RUNNING"))
        os.utime(path, (time.time() + 60,) * 2)


def _no_outcome(folder: Path, uri: str) -> None:
    (folder / "trials" / "trial-0001" / "outcome.json").unlink()


DAMAGES: dict[Callable[[Path, str], None], str] = {
    _twice_in_mlflow: "MLflow's runs differ: ['trial-0002']",
    _a_point_too_many: "trial-0000: MLflow's points of dev/label",
    _another_outcome: "trial-0000: Optuna has [0.5], its outcome [0.7]",
    _run_again: "trial-0001: Tune ran it again after its end",
    _ended_twice: "trial-0001: Tune says ['TERMINATED', 'TERMINATED']",
    _unended: "trial-0000: Tune says ['RUNNING']",
    _no_outcome: "trial-0001: it has not ended",
}


def test_nothing_is_told_where_all_agree_and_each_damage_is(swept: tuple[Path, str], tmp_path: Path) -> None:
    folder, uri = swept
    assert disagreements(folder, uri, "tiny", 2) == []
    assert str(cost(folder)) == "1 COMPLETE, 1 PRUNED: 4 steps in 0.0 minutes of trials; best: trial 0, 0.5000"
    assert disagreements(folder, uri, "tiny", 3) == ["Optuna has 2 trials"]
    storage = shutil.copytree(folder.parent, tmp_path / "stopped")
    _stopped_before(storage / folder.name, uri)
    assert disagreements(storage / folder.name, uri, "tiny", 2) == []
    for number, (damage, sentence) in enumerate(DAMAGES.items()):
        storage = shutil.copytree(folder.parent, tmp_path / f"damaged-{number}")
        copied = storage / folder.name, f"sqlite:///{storage / 'mlflow.db'}"
        damage(*copied)
        told = disagreements(*copied, "tiny", 2)
        assert any(each.startswith(sentence) for each in told), (sentence, told)
