"""A sweep's runs in MLflow (SQLite): parent, trials, what a session that was cut off left unsaid. No training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuning.blueprint import Unit, draw_up, trial_name
from tuning.config import SweepConfig
from tuning.ledger import Ledger, Outcome
from tuning.tracking import SweepTracking
from urg.tracking import Tracker
from urg.tracking.journal import Journal, read_cards

Make = Callable[..., SweepConfig]


def _end(ledger: Ledger, outcome: Outcome) -> int:
    number = ledger.ask()
    ledger.point(number)
    outcome.write(ledger.blueprint.trials_folder / trial_name(number))
    ledger.tell(number)
    return number


@pytest.fixture
def ledger(make_sweep: Make) -> Ledger:
    blueprint = draw_up(make_sweep(overrides={"tracking.uri": None}))
    blueprint.trials_folder.mkdir(parents=True)
    return Ledger.open(blueprint, 4)


def _runs(ledger: Ledger) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(ledger.blueprint.tracking_uri)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_what_a_killed_session_did_not_say_the_next_one_says_once(ledger: Ledger) -> None:
    from mlflow.tracking import MlflowClient

    blueprint = ledger.blueprint
    first = SweepTracking(ledger)
    done = _end(ledger, Outcome("finished", [0.4], 4, seconds=9.0))
    first.settle(done, Outcome("finished", [0.4], 4, seconds=9.0))
    first.log_history()
    first.close([], {}, interrupted=True)
    # Killed here: trial 1 was trained and tracked, trial 2 failed before it began; nobody has said so.
    spool = blueprint.trials_folder / trial_name(1) / "mlflow-spool"
    with Tracker(blueprint.tracking_uri, "tiny", trial_name(1), spool=spool, system_interval=None) as tracker:
        tracker.log_metrics({"dev/label": 0.7}, 2)
    _end(ledger, Outcome("finished", [0.7], 2))
    _end(ledger, Outcome("failed", reason="batch.micro=0"))

    for _ in range(2):
        second = SweepTracking(ledger)
        second.settle_left()
        second.wait()
        second.close([], {"best.trial": "1"})
    runs = _runs(ledger)
    assert runs.keys() == {"tiny", "trial-0000", "trial-0001", "trial-0002"}
    states = [runs[trial_name(number)].info.status for number in range(3)]
    assert states == ["FINISHED", "FINISHED", "FAILED"]
    assert {runs[trial_name(n)].data.tags["mlflow.parentRunId"] for n in range(3)} == {runs["tiny"].info.run_id}
    assert runs["trial-0001"].data.metrics["objective/label"] == 0.7
    assert runs["trial-0002"].data.tags["trial.reason"] == "batch.micro=0"
    assert set(runs["trial-0002"].data.params) == {"optim.lr", "model.k"}
    client = MlflowClient(blueprint.tracking_uri)
    history = client.get_metric_history(runs["tiny"].info.run_id, "best/label")
    assert [(point.step, point.value) for point in history] == [(1, 0.4), (2, 0.7)]
    assert (runs["tiny"].info.status, runs["tiny"].data.tags["best.trial"]) == ("FINISHED", "1")


def test_a_trial_that_was_tried_again_is_one_run_with_its_last_end(ledger: Ledger) -> None:
    from tuning.retry import reopen_failed

    for outcome in (Outcome("failed", reason="its node is gone."), Outcome("finished", [0.6], 4)):
        reopen_failed(ledger.blueprint)
        ledger = Ledger.open(ledger.blueprint, 4)
        tracking = SweepTracking(ledger)
        if ledger.interrupted():
            outcome.write(ledger.blueprint.trials_folder / trial_name(0))
            assert ledger.tell(0) == outcome
        else:
            _end(ledger, outcome)
        tracking.settle(0, outcome)
        tracking.close([], {}, interrupted=True)
        run = _runs(ledger)["trial-0000"]
        expected = (
            ("FAILED", "its node is gone.") if outcome.state == "failed" else ("FINISHED", "finished after 1 failed")
        )
        assert (run.info.status, run.data.tags["trial.reason"]) == expected
    assert run.data.metrics["objective/label"] == 0.6


def test_a_trial_whose_parent_was_not_known_yet_comes_below_it_when_it_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was away when the sweep began: the parent's run has no id yet when the first trial ends."""
    from tuning.tracking import PARENT, SETTLED

    tracking = SweepTracking(ledger)
    outcome, known = Outcome("finished", [0.4], 4), tracking.tags
    monkeypatch.setattr(tracking, "tags", lambda unit: {k: v for k, v in known(unit).items() if k != PARENT})
    number = _end(ledger, outcome)
    tracking.settle(number, outcome)
    tracking.wait()
    assert PARENT not in _runs(ledger)["trial-0000"].data.tags
    assert not (ledger.blueprint.trials_folder / trial_name(number) / SETTLED).exists()
    monkeypatch.undo()
    tracking.close([], {})
    runs = _runs(ledger)
    assert runs["trial-0000"].data.tags[PARENT] == runs["tiny"].info.run_id
    assert (runs["trial-0000"].info.status, runs["tiny"].info.status) == ("FINISHED", "FINISHED")


def test_what_a_worker_still_logs_after_its_trial_was_ended_early_is_sent_too(ledger: Ledger) -> None:
    """Tune ends a trial's actor at once, its workers live on for a moment: one of them evaluates once more."""
    from mlflow.tracking import MlflowClient

    blueprint, outcome = ledger.blueprint, Outcome("pruned", [0.4], 2, "ended by ASHA at step 2")
    number = _end(ledger, outcome)
    spool = blueprint.trials_folder / trial_name(number) / "mlflow-spool"
    with Tracker(blueprint.tracking_uri, "tiny", trial_name(number), spool=spool, system_interval=None) as tracker:
        tracker.log_metrics({"dev/label": 0.4}, 2)
    [card] = read_cards(spool)
    left = Journal(spool, card.key)  # the worker's, which has it as long as it lives

    def log_and_die() -> None:
        left.append([{"op": "metric", "time": int(time.time() * 1000), "step": 4, "key": "dev/label", "value": 0.5}])
        left.close()

    dying = threading.Timer(1.5, log_and_die)
    dying.start()
    sweep = SweepTracking(ledger)
    sweep.settle(number, outcome)
    sweep.close([], {})
    dying.join()
    run = _runs(ledger)[trial_name(number)]
    points = MlflowClient(blueprint.tracking_uri).get_metric_history(run.info.run_id, "dev/label")
    assert [(point.step, point.value) for point in points] == [(2, 0.4), (4, 0.5)]
    assert run.info.status == "KILLED"
    assert not list(spool.glob("*.jsonl"))


def test_lengths_that_shards_were_prepared_with_are_params_of_a_trained_trial(make_sweep: Make) -> None:
    space = {"prepare.lengths.response": {"choices": [64]}}
    blueprint = draw_up(make_sweep(space=space, prepare="sample", overrides={"tracking.uri": None}))
    blueprint.trials_folder.mkdir(parents=True)
    ledger = Ledger.open(blueprint, 4)
    tracking = SweepTracking(ledger)
    spool = blueprint.trials_folder / trial_name(0) / "mlflow-spool"
    with Tracker(blueprint.tracking_uri, "tiny", trial_name(0), spool=spool, system_interval=None) as run:
        run.log_params({"model.k": 3})
    outcome = Outcome("finished", [0.4], 4)
    tracking.settle(_end(ledger, outcome), outcome)
    tracking.close([], {})
    assert _runs(ledger)["trial-0000"].data.params == {"model.k": "3", "prepare.lengths.response": "64"}


@pytest.mark.parametrize("keep", [False, True])
def test_a_trials_run_names_what_stays_of_it(make_sweep: Make, keep: bool) -> None:
    blueprint = draw_up(make_sweep(keep_checkpoints=keep, overrides={"tracking.uri": None}))
    run = blueprint.trials_folder / trial_name(0)
    for left in ("model", "checkpoint-00000004-abc"):
        (run / left).mkdir(parents=True)
    ledger = Ledger.open(blueprint, 4)
    tracking = SweepTracking(ledger)
    outcome = Outcome("finished", [0.4], 4)
    tracking.settle(_end(ledger, outcome), outcome)
    tracking.close([], {})
    tags = _runs(ledger)["trial-0000"].data.tags
    assert tags["model.folder"] == str(run / "model")
    assert tags.get("checkpoint.folder") == (str(run / "checkpoint-00000004-abc") if keep else None)


def test_the_champion_is_registered_once_and_a_registry_that_is_away_is_a_warning(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from urg.tracking import mlflow_run

    tracking = SweepTracking(ledger)
    run = ledger.blueprint.trials_folder / trial_name(0)
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    with Tracker(ledger.blueprint.tracking_uri, "tiny", "x", spool=run / "mlflow-spool", system_interval=None):
        pass
    for _ in range(2):
        assert tracking.register(run, 0, {"label": 0.5}) == "models:/tiny@champion (version 1)"
    client = MlflowClient(ledger.blueprint.tracking_uri)
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.tags == {"sweep": "tiny", "trial": "0", "label": "0.5"}
    assert [file.path for file in client.list_artifacts(champion.run_id, "model")] == ["model/config.json"]

    def away(*_: object) -> str:
        raise ConnectionError("nobody\nanswers")

    monkeypatch.setattr(mlflow_run, "register_model", away)
    assert tracking.register(run, 0, {"label": 0.5}) is None
    assert "the best model was not registered (nobody answers)" in caplog.text
    tracking.close([], {})


def test_the_champion_changes_only_for_a_better_one_by_the_same_metric(ledger: Ledger) -> None:
    """Several sweeps may share a name in the registry, and each knows its own trials only."""
    from mlflow.tracking import MlflowClient

    tracking = SweepTracking(ledger)
    said = []
    for number, values in enumerate([{"label": 0.5}, {"label": 0.4}, {"label": 0.6}]):
        run = ledger.blueprint.trials_folder / trial_name(number)
        (run / "model").mkdir(parents=True)
        (run / "model" / "config.json").write_text("{}")
        with Tracker(ledger.blueprint.tracking_uri, "tiny", run.name, spool=run / "mlflow-spool", system_interval=None):
            pass
        said.append(tracking.register(run, number, values))
    assert said == [
        "models:/tiny@champion (version 1)",
        "models:/tiny/2; the champion stays: version 1 has label 0.5",
        "models:/tiny@champion (version 3)",
    ]
    client = MlflowClient(ledger.blueprint.tracking_uri)
    assert client.get_model_version_by_alias("tiny", "champion").version == 3
    client.delete_model_version_tag("tiny", "3", "label")
    run = ledger.blueprint.trials_folder / trial_name(0)
    kept = "models:/tiny/1; the champion stays: version 3 has no label to compare with"
    assert tracking.register(run, 0, {"label": 0.9}) == kept
    tracking.close([], {})


def test_untracked_sweeps_say_nothing(make_sweep: Make, tmp_path: Path) -> None:
    blueprint = draw_up(make_sweep())
    blueprint.trials_folder.mkdir(parents=True)
    tracking = SweepTracking(Ledger.open(blueprint, 4))
    assert tracking.tags(Unit(0)) == {"sweep": "tiny", "kind": "trial", "trial": "0"}
    tracking.settle(0, Outcome("failed", reason="x"))
    tracking.close([], {})
    assert not list(tmp_path.rglob("*.db-journal")) + list(tmp_path.rglob("mlflow.db"))
