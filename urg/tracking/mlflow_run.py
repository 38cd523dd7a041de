"""One run on an MLflow server or database: all of the project's MLflow calls."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from data_pipeline.errors import UserError
from urg.tracking.delivery import EVENTS_PER_SEND
from urg.tracking.journal import Event, RunCard
from urg.tracking.loggable import (
    NAME_LIMIT,
    TAG_LIMIT,
    clean_name,
    redact,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


KEY_TAG = "urg.run_key"
ANSWERS_TAG, PARENT_TAG = "urg.answers_key", "mlflow.parentRunId"
ENTITIES_PER_CALL = {"metrics": EVENTS_PER_SEND, "params": 100, "tags": 100}  # MLflow's limits of log_batch
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default, 7 with back-off, takes minutes; we retry ourselves
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the login in the address
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_log = logging.getLogger(__name__)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a database file's lock: MLflow makes its tables when a client first opens it, and two of them at once fail
    in each other's."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not path.parent.is_dir():
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class MlflowRun:
    """The run on the server: the Destination (urg.tracking.delivery) of the journal's events."""

    def __init__(self, uri: str, card: RunCard, spool: Path) -> None:
        self.name = f"MLflow at {redact(uri)}"
        self._uri, self._card, self._spool = uri, card, spool
        self._client: MlflowClient | None = None
        self._steps: dict[str, set[int]] = {}  # per metric: the steps that the run has, once that was asked for
        self._is_new = False  # no point is there but those in _steps
        self._params: dict[str, str] = {}
        self._failed: list[Event] = []

    @property
    def run_id(self) -> str:
        """The server's id, or `pending-<key>` before the first connection."""
        return self._card.run_id or f"pending-{self._card.key}"

    def connect(self) -> None:
        """Find the run or make it; writes its id into the spool's card."""
        if self._client is not None:
            return
        client = _make_client(self._uri)
        run = self._find(client)
        if run is None:
            run = self._create(client)
            self._is_new = True
        self._params = dict(run.data.params)
        self._card = replace(self._card, run_id=run.info.run_id)
        self._card.write(self._spool)
        self._client = client

    def send(self, events: Sequence[Event]) -> None:
        """Write the events into the run. May be called again with the same ones."""
        try:
            self._send_metrics([event for event in events if event["op"] == "metric"])
        except Exception:
            self._steps.clear()  # they may have been stored before it failed: ask before they are sent again
            self._is_new = False
            raise
        self._send_params({event["key"]: event["value"] for event in events if event["op"] == "param"})
        self._send_tags({event["key"]: event["value"] for event in events if event["op"] == "tag"})
        for event in events:
            if event["op"] == "artifact":
                self._store(event)
            elif event["op"] == "status":
                self._set_status(event["value"])

    def explain(self, error: Exception) -> str:
        """The error as one line of at most 300 characters, without the login of a URL."""
        return redact(" ".join(str(error).split()))[:300] or type(error).__name__

    def is_hopeless(self, error: Exception) -> bool:
        """Whether the uri, the login or the database file is wrong."""
        if self._uri.startswith("sqlite:") or isinstance(error, ImportError):
            return "locked" not in str(error)  # by another process that writes to the same file
        code = getattr(error, "error_code", "")
        return code in ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")

    def retry_failed(self) -> None:
        """Store again the artifacts that could not be stored, with a warning for each that still cannot."""
        failed, self._failed = self._failed, []
        for event in failed:
            self._store(event, last=True)

    def failed(self) -> Sequence[Event]:
        """The artifacts that are not stored."""
        return self._failed

    @property
    def _connected(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("connect() comes before send()")
        return self._client

    def _find(self, client: MlflowClient) -> Run | None:
        """The run of the card, by its id or by the tag that we gave it; None where the server does not have it."""
        if self._card.run_id:
            if run := _get_run(client, self._card.run_id):
                return run
            _log.warning("%s does not have the run %s (any more): a new one is made.", self.name, self._card.run_id)
        experiment = client.get_experiment_by_name(self._card.experiment)
        if experiment is None:
            return None
        tag = f"tags.`{KEY_TAG}` = '{self._card.key}'"
        found = client.search_runs([experiment.experiment_id], tag, max_results=1)
        return found[0] if found else None

    def _create(self, client: MlflowClient) -> Run:
        experiment = _experiment_id(client, self._card.experiment, self._uri)
        start, tags = int(self._card.start_time * 1000), {KEY_TAG: self._card.key}
        return client.create_run(experiment, start_time=start, tags=tags, run_name=self._card.run_name)

    def _send_metrics(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        points = []
        for event in events:
            steps = self._known_steps(event["key"])
            if event["step"] not in steps:
                steps.add(event["step"])
                points.append(Metric(event["key"], event["value"], event["time"], event["step"]))
        self._send_batch("metrics", points)

    def _known_steps(self, key: str) -> set[int]:
        if key not in self._steps:
            history = [] if self._is_new else self._connected.get_metric_history(self.run_id, key)
            self._steps[key] = {metric.step for metric in history}
        return self._steps[key]

    def _send_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        new = {key: value for key, value in params.items() if key not in self._params}
        changed = {key: value for key, value in params.items() if self._params.get(key, value) != value}
        self._send_batch("params", [Param(key, value) for key, value in new.items()])
        self._params.update(new)
        if changed:
            names = ", ".join(sorted(changed))
            _log.warning("The run %s began with other values of %s: see its tags changed/….", self.run_id, names)
            self._send_tags({f"changed/{key}"[:NAME_LIMIT]: value[:TAG_LIMIT] for key, value in changed.items()})

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._send_batch("tags", [RunTag(key, value) for key, value in tags.items()])

    def _set_status(self, status: str) -> None:
        if status == "RUNNING":
            self._connected.update_run(self.run_id, status=status)
        else:
            self._connected.set_terminated(self.run_id, status=status)

    def _send_batch(self, kind: str, entities: Sequence[Any]) -> None:
        """log_batch in parts. An entity that the server refuses is left out with a warning, and the others go on."""
        from mlflow.exceptions import MlflowException

        size = ENTITIES_PER_CALL[kind]
        for part in (entities[i : i + size] for i in range(0, len(entities), size)):
            try:
                self._connected.log_batch(self.run_id, synchronous=True, **{kind: part})
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE" or not _get_run(self._connected, self.run_id):
                    raise  # a run that was deleted, too: it may be restored
                if len(part) == 1:
                    _log.warning("%s refuses %s (%s): it is left out.", self.name, part[0].key, self.explain(error))
                else:
                    self._send_batch(kind, part[: len(part) // 2])
                    self._send_batch(kind, part[len(part) // 2 :])

    def _store(self, event: Event, *, last: bool = False) -> None:
        """Store an artifact. What fails, for whatever reason of its own storage, must not hold up the metrics."""
        path, folder = Path(event["path"]), event["folder"] or None
        store = self._connected.log_artifacts if path.is_dir() else self._connected.log_artifact
        try:
            store(self.run_id, str(path), folder)
        except Exception as error:
            if last:
                _log.warning("%s: the artifact %s could not be stored: %s", self.name, path, self.explain(error))
            if path.exists() or not last:
                self._failed.append(event)


def register_model(
    uri: str, run_id: str, folder: Path, name: str, alias: str, tags: Mapping[str, str], metric: str
) -> tuple[str, str | None]:
    """Store a model folder with its run and make it a version of the registered model `name`. The version that has the
    `alias` goes on to have it unless this one is better by the tag `metric`, higher being better.

    Returns the version, and what keeps the alias from it, in words, or None where it has it. A run has one version at
    most: the one that it has is taken. Raises what MLflow raises, also where the store has no registry.
    """
    from mlflow.exceptions import MlflowException

    client = _make_client(uri)
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if found:
        version = str(found[0].version)
    else:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.log_artifacts(run_id, str(folder), "model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        version = str(client.create_model_version(name, source, run_id, tags=dict(tags)).version)
    kept = _holder(client, name, alias, version, metric, float(tags[metric]))
    if kept is None:
        client.set_registered_model_alias(name, alias, version)
    return version, kept


def _holder(client: MlflowClient, name: str, alias: str, version: str, metric: str, value: float) -> str | None:
    """The version that keeps the alias, in words; None where there is no other, or it is worse by `metric`."""
    from mlflow.exceptions import MlflowException

    try:
        held = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    if str(held.version) == version:
        return None
    if metric not in held.tags:
        return f"version {held.version} has no {metric} to compare with"
    better = value > float(held.tags[metric])
    return None if better else f"version {held.version} has {metric} {held.tags[metric]}"


def tag_experiment(uri: str, experiment: str, tags: Mapping[str, str]) -> str:
    """Set tags of an experiment, which is made where it is missing; its id. Raises what MLflow raises."""
    client = _make_client(uri)
    experiment_id = _experiment_id(client, experiment, uri)
    for key, value in tags.items():
        client.set_experiment_tag(experiment_id, key, value)
    return experiment_id


def load_client() -> type[MlflowClient]:
    """MLflow's client, imported with our settings, which takes seconds the first time."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils"):  # a line for each of the migrations
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient


def _make_client(uri: str) -> MlflowClient:
    """A client that leaves MLflow's global uri and active run alone. The first use of a database creates its tables."""
    client = load_client()
    with _one_at_a_time(uri):
        return client(uri)


def _get_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run; None where it does not exist or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The experiment's id; made where it is missing, beside a SQLite database with an absolute folder for artifacts.

    (MLflow's own default is a folder `mlruns` in the current one, and each Ray worker has its own.)
    """
    from mlflow.exceptions import MlflowException

    folder = None
    if uri.startswith("sqlite:///"):
        folder = f"{(Path(uri.removeprefix('sqlite:///')).parent / 'mlartifacts').as_uri()}/{quote(name, safe='')}"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=folder))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)  # another process was quicker
    if experiment is None:
        raise RuntimeError(f"MLflow has an experiment {name!r} and does not find it.")
    return str(experiment.experiment_id)


@dataclass(frozen=True)
class Finished:
    """A run that is logged all at once."""

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


def log_finished_runs(uri: str, experiment: str, parent: Finished, children: Sequence[Finished], key: str) -> str:
    """A parent run and one below it for each child, all finished at once; returns the parent's id.

    The same metric names in all of them are what MLflow's compare view lays side by side. key: tags the parent; where
    one with this tag is there, it and its children of the same names are taken, so that a repetition makes no doubles.
    Waits for the server. Raises UserError where it cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = _make_client(uri)
        experiment_id = _experiment_id(client, experiment, uri)
        known = client.search_runs([experiment_id], f"tags.`{ANSWERS_TAG}` = '{key}'", max_results=1)
        top = _log_finished(client, experiment_id, parent, known[0] if known else None, {ANSWERS_TAG: key})
        under = {PARENT_TAG: top}
        below = client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{top}'")
        known_below = {run.info.run_name: run for run in below}
        for child in children:
            _log_finished(client, experiment_id, child, known_below.get(child.name), under)
    except (MlflowException, OSError) as error:
        reason = redact(" ".join(str(error).split()))[:300]
        raise UserError(f"MLflow at {redact(uri)} did not take the runs ({reason})") from error
    return top


def _log_finished(
    client: MlflowClient, experiment_id: str, finished: Finished, known: Run | None, tags: Mapping[str, str]
) -> str:
    """Log a run, which `known` is where it is there already; its id."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    made = known or client.create_run(experiment_id, start_time=now, run_name=finished.name, tags=dict(tags))
    params = [Param(key, value) for key, value in finished.params.items() if key not in made.data.params]
    metrics = [Metric(clean_name(key), value, now, 0) for key, value in finished.metrics.items()]
    client.log_batch(made.info.run_id, metrics=metrics, params=params)
    client.set_terminated(made.info.run_id)
    return str(made.info.run_id)
