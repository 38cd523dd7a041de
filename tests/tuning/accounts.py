"""Whether all that keeps account of a sweep tells the same: Optuna's study, the outcome files, Tune, MLflow.

Also a command, for a sweep that was killed and resumed by hand: `python -m tests.tuning.accounts runs/sweep-sample`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuning.cost import cost, study_of
from urg.training.evaluations import read_evaluations

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
LAG = 5.0
"""Seconds by which Tune's snapshot may be older than an outcome when a kill comes: it is written every second."""


def tracked(uri: str, experiment: str) -> dict[str, Any]:
    """MLflow's runs by name; a name that two runs have fails."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each point of a metric, as MLflow stored them."""
    from mlflow.tracking import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def tune_sessions(folder: Path) -> Iterator[tuple[float, float, dict[str, str]]]:
    """(when it began, when it was last heard of, the status then of each of its trials) of each of Tune's sessions."""
    for session in sorted(folder.glob("tune/session-*")):
        for path in sorted(session.glob("experiment_state-*.json")):
            stored = json.loads(path.read_text())
            trials = [json.loads(data) for data, _ in stored["trial_data"]]
            begun = float(stored["runner_data"]["_start_time"])
            yield begun, path.stat().st_mtime, {trial["relative_logdir"]: trial["status"] for trial in trials}


def disagreements(folder: Path, uri: str, experiment: str, trials: int) -> list[str]:
    """A sentence for each thing that was lost, doubled, repeated, or is told in two ways. trials: how many there must
    be, each of one run."""
    found = study_of(folder).trials
    told = [] if [trial.number for trial in found] == list(range(trials)) else [f"Optuna has {len(found)} trials"]
    runs = tracked(uri, experiment)
    names = {f"trial-{trial.number:04d}" for trial in found}
    if runs.keys() != names | {folder.name}:
        told.append(f"MLflow's runs differ: {sorted(runs.keys() ^ (names | {folder.name}))}")
    for trial in found:
        name = f"trial-{trial.number:04d}"
        if not (folder / "trials" / name / "outcome.json").exists():
            told.append(f"{name}: it has not ended")
            continue
        told += [f"{name}: {what}" for what in _of_files(folder / "trials" / name, trial)]
        told += [f"{name}: {what}" for what in _of_tune(folder, name)]
        if name in runs:
            told += [f"{name}: {what}" for what in _of_mlflow(uri, runs[name], trial, folder / "trials" / name)]
            if runs[name].data.tags.get("mlflow.parentRunId") != runs[folder.name].info.run_id:
                told.append(f"{name}: MLflow has it below another run")
    return told


def _of_files(run: Path, trial: Any) -> Iterator[str]:
    """The outcome file, and values of steps that were evaluated."""
    outcome = json.loads((run / "outcome.json").read_text())
    if STATES.get(trial.state.name) != outcome["state"]:
        yield f"Optuna says {trial.state.name}, its outcome {outcome['state']}"
    if (trial.values or outcome["values"]) != outcome["values"]:
        yield f"Optuna has {trial.values}, its outcome {outcome['values']}"
    steps = [step for step, _ in _evaluated(run)]
    later = [step for step in trial.intermediate_values if step not in steps]
    if later:
        yield f"Optuna has values of the steps {later}, which were never evaluated"


def _of_tune(folder: Path, name: str) -> Iterator[str]:
    """A trial ends once, and no session that begins after its end runs it again. Where Tune saw it end in
    a session before its end, it was stopped, or failed and tried again."""
    sessions = [(begun, saved, states[name]) for begun, saved, states in tune_sessions(folder) if name in states]
    if not sessions:
        yield "no session of Tune had it"
        return
    ended = (folder / "trials" / name / "outcome.json").stat().st_mtime
    if any(begun > ended for begun, _, _ in sessions):
        yield "Tune ran it again after its end"
    ends = sum(status in ("TERMINATED", "ERROR") and saved >= ended for _, saved, status in sessions)
    cut_off = max(saved for _, saved, _ in sessions) < ended + LAG
    if ends > 1 or (ends == 0 and not cut_off):
        yield f"Tune says {[status for _, _, status in sessions]}"


def _of_mlflow(uri: str, run: Any, trial: Any, folder: Path) -> Iterator[str]:
    """Its end, its values, and every evaluation's point once."""
    if run.info.status != STATUS.get(trial.state.name):
        yield f"Optuna says {trial.state.name}, MLflow {run.info.status}"
    objective = next((key for key in run.data.metrics if key.startswith("objective/")), None)
    if trial.values and (objective is None or run.data.metrics[objective] != trial.values[0]):
        yield f"Optuna has {trial.values}, MLflow {objective and run.data.metrics[objective]}"
    if objective is not None:
        name = objective.removeprefix("objective/")
        points = history(uri, run, f"dev/{name}")
        evaluated = [(step, metrics[name]) for step, metrics in _evaluated(folder)]
        # One is noted in the file when its checkpoint is written: ASHA may end the trial before that.
        if trial.state.name == "PRUNED" and len(points) == len(evaluated) + 1:
            points.pop()
        if points != evaluated:
            yield f"MLflow's points of dev/{name} are {points}, the file's {evaluated}; {trial.state.name}"


def _evaluated(run: Path) -> list[tuple[int, dict[str, float]]]:
    """As everybody reads them: a step that a resumed run repeated counts once."""
    return [(evaluation.step, evaluation.metrics) for evaluation in read_evaluations(run)]


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    wrong = disagreements(where, f"sqlite:///{where.parent / 'mlflow.db'}", where.name, len(study_of(where).trials))
    print("\n".join(wrong) or f"all accounts agree; {cost(where)}")
    sys.exit(bool(wrong))
