"""Sweeps on real Ray Tune, Ray Train and DeepSpeed: killed and resumed; failing trials; a real MLflow server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from tests.mlflow_server import MlflowServer, mlflow_server
from tests.tuning.accounts import disagreements, history, tracked
from tests.tuning.killing import run_killed
from tuning.config import SweepConfig
from tuning.cost import study_of
from urg.tracking import default_uri
from urg.training.evaluations import read_evaluations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Make = Callable[..., SweepConfig]


def _command(config: SweepConfig, tmp_path: Path) -> list[str]:
    file = tmp_path / f"{config.name}.yaml"
    file.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    return [sys.executable, "-m", "tuning.sweep", "--config", str(file), "--resume"]


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}


def _killed_when_two_trials_are_at_step_12(config: SweepConfig, tmp_path: Path) -> list[Path]:
    """Start a sweep and kill its driver; the logs of the two trials."""
    _signalled_when_two_trials_are_at_step_12(config, tmp_path, signal.SIGKILL)
    return [Path(config.storage) / config.name / "trials" / f"trial-000{number}" / "train.log" for number in (0, 1)]


def _signalled_when_two_trials_are_at_step_12(config: SweepConfig, tmp_path: Path, kind: signal.Signals) -> int:
    """Start a sweep and send its driver a signal; its exit code."""
    folder = Path(config.storage) / config.name
    process = subprocess.Popen(_command(config, tmp_path), env=_environment(), stdout=subprocess.DEVNULL)
    logs = [folder / "trials" / f"trial-000{number}" / "train.log" for number in (0, 1)]
    while not any(log.exists() and "step 12/" in log.read_text() for log in logs):
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, kind)
    return process.wait(timeout=300)


@pytest.mark.faults
def test_killed_in_the_middle_of_its_trials_a_sweep_goes_on(make_sweep: Make, asha: Any, tmp_path: Path) -> None:
    """SIGKILL while two trials train; afterwards Optuna, Tune and MLflow each have every trial once."""
    overrides = {"steps": 40, "eval.every": 10, "tracking.uri": None}
    scheduler = dataclasses.replace(asha, grace=10)
    config = make_sweep(trials=4, scheduler=scheduler, overrides=overrides, concurrency=2)
    folder, uri = Path(config.storage) / config.name, default_uri(Path(config.storage))
    logs = _killed_when_two_trials_are_at_step_12(config, tmp_path)
    done = subprocess.run(_command(config, tmp_path), env=_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "were interrupted" in done.stdout
    assert any("resuming from" in log.read_text() for log in logs)

    trials = study_of(folder).trials
    states = {f"trial-{trial.number:04d}": trial.state.name for trial in trials}
    assert len(states) == 4
    assert set(states.values()) <= {"COMPLETE", "PRUNED"}
    assert trials[0].params == {"optim.lr": 0.0015, "model.k": 3}
    assert disagreements(folder, uri, "tiny", 4) == []
    runs = tracked(uri, "tiny")
    for name in (name for name, state in states.items() if state == "COMPLETE"):
        assert [step for step, _ in history(uri, runs[name], "dev/label")] == [10, 20, 30, 40]
    assert (folder / "best" / "model.safetensors").is_file()
    _require_resumable_only_as_itself(config, tmp_path)


@pytest.mark.faults
def test_on_sigterm_the_trials_write_a_checkpoint_and_the_same_command_goes_on(
    make_sweep: Make, tmp_path: Path
) -> None:
    """No evaluation comes before the end, and with it no other checkpoint. A trial that has not begun owes none."""
    overrides = {"steps": 120, "eval.every": 120, "tracking.uri": None}
    config = make_sweep(trials=2, overrides=overrides, concurrency=2)
    folder = Path(config.storage) / config.name
    told = _signalled_when_two_trials_are_at_step_12(config, tmp_path, signal.SIGTERM)
    assert told == 75
    trials = [folder / "trials" / f"trial-000{number}" for number in (0, 1)]
    assert not any((trial / "outcome.json").exists() for trial in trials)
    begun = [trial for trial in trials if (trial / "train.log").exists()]
    assert begun
    assert all(list(trial.glob("checkpoint-*/manifest.json")) for trial in begun)
    done = subprocess.run(_command(config, tmp_path), env=_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert all("resuming from" in (trial / "train.log").read_text() for trial in begun)
    assert disagreements(folder, default_uri(Path(config.storage)), "tiny", 2) == []


@pytest.mark.faults
@pytest.mark.exhaustive
def test_a_killed_sweep_ends_with_the_trials_and_the_best_model_of_an_undisturbed_one(
    make_sweep: Make, tmp_path: Path
) -> None:
    """A grid, every trial to its end and with dropout: what ASHA ends early, and what TPE tries next, would depend on
    which of two trials is ahead."""
    space = {"optim.lr": {"choices": [0.003, 0.01]}}
    # Long enough: the workers of a driver that is killed train on for a second.
    overrides = {"steps": 120, "eval.every": 60, "checkpoint_every": 6, "model.dropout": 0.1, "tracking.uri": None}
    given = {"searcher": "grid", "base_first": False, "trials": 2, "concurrency": 2}
    calm, hurt = (make_sweep(name=name, space=space, overrides=overrides, **given) for name in ("calm", "hurt"))
    logs = _killed_when_two_trials_are_at_step_12(hurt, tmp_path)
    for config in (calm, hurt):
        subprocess.run(_command(config, tmp_path), env=_environment(), check=True, capture_output=True, timeout=600)
    assert any("resuming from" in log.read_text() for log in logs)
    results = [_results(Path(config.storage) / config.name) for config in (calm, hurt)]
    assert results[0].keys() == {"best", "trial-0000", "trial-0001"}
    assert results[0] == results[1]


def _results(folder: Path) -> dict[str, Any]:
    """What came out of a sweep: of each trial its point and all that was measured, and the weights of the best."""
    weights = (folder / "best" / "model.safetensors").read_bytes()
    found: dict[str, Any] = {"best": hashlib.sha256(weights).hexdigest()}
    for trial in study_of(folder).trials:
        name = f"trial-{trial.number:04d}"
        measured = {each.step: each.metrics for each in read_evaluations(folder / "trials" / name)}
        assert sorted(measured) == [60, 120]
        found[name] = (trial.state, trial.params, trial.values, measured)
    return found


@pytest.mark.exhaustive
@pytest.mark.timeout(2700)
def test_twenty_trials_killed_twice_at_random_moments_end_once_each(
    make_sweep: Make, asha: Any, tmp_path: Path
) -> None:
    """SIGKILL of the whole process group, wherever it stands; the third session goes to the end."""
    config = make_sweep(trials=20, scheduler=asha, overrides={"tracking.uri": None})
    folder, command = Path(config.storage) / config.name, _command(config, tmp_path)
    run_killed(command, folder, random.Random(0), _environment())
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert disagreements(folder, default_uri(Path(config.storage)), "tiny", 20) == []


def _require_resumable_only_as_itself(config: SweepConfig, tmp_path: Path) -> None:
    """Another space or base is refused with the difference; a sweep that is done is done; best.yaml trains."""
    from data_pipeline.cli import parse_config
    from tuning.sweep import sweep
    from urg.config import TrainConfig

    wider = dataclasses.replace(config, space={"optim.lr": {"low": 1e-4, "high": 0.5, "log": True}})
    with pytest.raises(UserError, match=r"holds another sweep: space.model.k.high \(was 4, now None\)"):
        sweep(wider)
    with pytest.raises(UserError, match=r"base: loss.gamma \(was 3.0, now 1.0\)"):
        sweep(dataclasses.replace(config, overrides=config.overrides | {"loss.gamma": 1.0}))
    with pytest.raises(UserError, match="choose another --name, or --resume"):
        sweep(dataclasses.replace(config, resume=False))
    best = parse_config(TrainConfig, argv=["--config", str(Path(config.storage) / config.name / "best.yaml")])
    assert best.name == "tiny-best"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A real `mlflow server` on loopback."""
    with mlflow_server(tmp_path / "server") as running:
        yield running


@pytest.mark.exhaustive
def test_a_server_holds_trials_of_two_lengths_and_the_champion(
    make_sweep: Make, server: MlflowServer, ray_started: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each length's shards are prepared once; a trial whose worker fails says why, and the sweep goes on."""
    from mlflow.tracking import MlflowClient

    from tuning.sweep import sweep

    (tmp_path / "prepare.yaml").write_text("sample: {train: 24, dev: 4, test: 4}")
    lengths = {"choices": [16, 128], "when": {"eval.bertscore_model": None}}
    space = {"eval.bertscore_model": {"choices": [None, "/nowhere/bert"]}, "prepare.lengths.response": lengths}
    overrides = {"tracking.uri": server.uri}
    given = {"searcher": "grid", "prepare": str(tmp_path / "prepare.yaml"), "retries": 0, "trials": 9}
    folder = sweep(make_sweep(space=space, overrides=overrides, **given))

    trials = study_of(folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert trials[2].params == {"eval.bertscore_model": "/nowhere/bert"}
    assert "/nowhere/bert" in trials[2].user_attrs["reason"]
    assert f"trial 2: failed: {trials[2].user_attrs['reason']}" in capsys.readouterr().out
    assert len(list((folder / "shards").glob("*/manifest.json"))) == 2
    runs, client = tracked(server.uri, "tiny"), MlflowClient(server.uri)
    assert [runs[f"trial-000{number}"].info.status for number in range(3)] == ["FINISHED", "FINISHED", "FAILED"]
    assert runs["trial-0002"].data.tags["trial.reason"] == trials[2].user_attrs["reason"]
    assert runs["trial-0002"].data.params["eval.bertscore_model"] == "/nowhere/bert"
    best = int(runs["tiny"].data.tags["best.trial"])
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.run_id == runs[f"trial-{best:04d}"].info.run_id
    files = {file.path for file in client.list_artifacts(champion.run_id, "model")}
    assert "model/model.safetensors" in files
    assert {"report.html", "report.md", "best.yaml", "best-trial.yaml"} <= {
        file.path for file in client.list_artifacts(runs["tiny"].info.run_id)
    }


@pytest.mark.exhaustive
def test_a_server_that_hangs_costs_no_trial_and_loses_no_point(
    make_sweep: Make, server: MlflowServer, tmp_path: Path
) -> None:
    """It stops answering in the first trial and comes back after the sweep; the same command sends what it missed."""
    config = make_sweep(trials=3, overrides={"tracking.uri": server.uri})
    folder = Path(config.storage) / config.name
    process = subprocess.Popen(_command(config, tmp_path), env=_environment(), stdout=subprocess.DEVNULL)
    while not (folder / "trials" / "trial-0000" / "evaluations.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    server.signal(signal.SIGSTOP)
    assert process.wait(timeout=400) == 0
    assert [trial.state.name for trial in study_of(folder).trials] == ["COMPLETE"] * 3
    server.signal(signal.SIGCONT)
    subprocess.run(_command(config, tmp_path), env=_environment(), check=True, timeout=400)
    assert disagreements(folder, server.uri, "tiny", 3) == []


@pytest.mark.exhaustive
def test_folds_run_as_trials_of_their_own_and_give_mean_and_spread(
    make_sweep: Make, ray_started: None, tmp_path: Path
) -> None:
    from tuning.sweep import sweep

    config = make_sweep(folds=2, trials=1, overrides={"tracking.uri": None, "steps": 2})
    folder = sweep(config)
    (trial,) = study_of(folder).trials
    folds = [json.loads((folder / "trials" / f"trial-0000-fold-{i}" / "outcome.json").read_text()) for i in (0, 1)]
    values = [fold["values"][0] for fold in folds]
    assert trial.values == [pytest.approx(sum(values) / 2)]
    assert trial.user_attrs["spread"] == [pytest.approx(abs(values[0] - values[1]) / 2**0.5)]
    runs = tracked(default_uri(Path(config.storage)), "tiny")
    assert runs.keys() == {"tiny", "trial-0000", "trial-0000-fold-0", "trial-0000-fold-1"}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents["trial-0000-fold-1"] == runs["trial-0000"].info.run_id
    assert parents["trial-0000"] == runs["tiny"].info.run_id
    assert runs["trial-0000"].data.metrics["spread/label"] == pytest.approx(trial.user_attrs["spread"][0])
    assert runs["trial-0000"].info.status == "FINISHED"


def test_a_trial_that_runs_out_of_memory_says_so_and_the_sweep_goes_on(make_sweep: Make, tmp_path: Path) -> None:
    """Memory is bounded (a TiB of addresses for each of Ray's processes), and two of three trials ask for more: one for
    a weight, one for beams when it is first evaluated. The kernel refuses both; nothing of the machine's is taken."""
    beams = {"choices": [2**46, 1], "when": {"model.scratch.d_ff": 48}}
    space = {"model.scratch.d_ff": {"choices": [2**35, 48]}, "eval.num_beams": beams}
    given = {"searcher": "grid", "base_first": False, "retries": 0, "trials": 3}
    config = make_sweep(space=space, overrides={"tracking.uri": None}, **given)
    command = ["prlimit", f"--as={2**40}", *_command(config, tmp_path)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    folder = Path(config.storage) / config.name
    *failed, last = study_of(folder).trials
    assert [trial.params.get("eval.num_beams") for trial in failed] == [None, 2**46]
    for trial in failed:
        assert trial.state.name == "FAIL"
        assert trial.user_attrs["reason"].startswith("out of memory: ")
        assert "you tried to allocate" in trial.user_attrs["reason"]
        assert f"trial {trial.number}: failed: {trial.user_attrs['reason']}" in done.stdout
    assert "step 2/4" in (folder / "trials" / "trial-0001" / "train.log").read_text()  # it had begun to train
    assert last.state.name == "COMPLETE"
    assert (folder / "best" / "model.safetensors").is_file()
    assert disagreements(folder, default_uri(Path(config.storage)), "tiny", 3) == []


def test_a_trial_that_failed_is_tried_again_and_all_accounts_tell_the_same(make_sweep: Make, tmp_path: Path) -> None:
    """Something stands where its configuration should be, until it is mended."""
    config = make_sweep(trials=2, overrides={"tracking.uri": None})
    folder = Path(config.storage) / config.name
    wrong = folder / "trials" / "trial-0001" / "config.yaml"
    wrong.mkdir(parents=True)
    for mended, states in ((False, ["COMPLETE", "FAIL"]), (True, ["COMPLETE", "COMPLETE"])):
        if mended:
            wrong.rmdir()
        command = [*_command(config, tmp_path), f"--retry_failed={str(mended).lower()}"]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        assert [trial.state.name for trial in study_of(folder).trials] == states
        assert ("--retry_failed true tries them" in done.stdout) != mended
        assert disagreements(folder, default_uri(Path(config.storage)), "tiny", 2) == []
    assert (folder / "trials" / "trial-0001" / "outcome-1.json").exists()


def test_no_room_for_one_trial_is_said_at_once(make_sweep: Make, ray_started: None) -> None:
    from tuning.sweep import sweep

    with pytest.raises(UserError, match=r"one trial needs 9 workers of 1 CPU each, and there is room for 4"):
        sweep(make_sweep(overrides={"engine.workers": 9}))


def test_an_unwritable_storage_and_a_k_of_all_candidates_are_one_sentence(
    make_sweep: Make, ray_started: None, tmp_path: Path
) -> None:
    from tuning.sweep import sweep

    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write to the folder"):
        sweep(make_sweep(storage=str(tmp_path / "file" / "runs")))
    with pytest.raises(UserError, match=r"model.k goes up to 12"):
        sweep(make_sweep(space={"model.k": {"low": 1, "high": 12}}))
