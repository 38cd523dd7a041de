"""Logging to MLflow; the only module that imports it.

    with Tracker(default_uri(storage), "experiment", "run", tags={...}, spool=run_folder / "tracking") as tracker:
        tracker.log_params(config)
        tracker.log_metrics({"loss": 1.5}, step=10)

Who logs never waits for the server; a new run's construction and `close` do, for a bounded time. Whatever is logged is
appended to a file (urg.tracking.journal), and a thread (urg.tracking.delivery) sends what is in the file. The server
may be away at the beginning, in the middle, or all the time: the file keeps everything, over the end of the process
too, and the next Tracker of the run, or `python -m urg.tracking.replay`, sends it.

Once and only once: sending is at-least-once (an event leaves the file after the server has confirmed it), and a check
makes it once. A point is (metric, step); before points are sent to a run that may have them (continued, or after
a failure whose outcome is unknown) the run's steps are asked for, and what is there is left out. So a point keeps its
first value. What slips in between has the same time stamp and value, and MLflow's databases store that once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

from data_pipeline.errors import UserError
from urg.tracking.delivery import Sender
from urg.tracking.journal import Event, Journal, find_card, read_cards
from urg.tracking.loggable import (
    PARAM_LIMIT,
    TAG_LIMIT,
    clean_name,
    clean_number,
    clean_text,
    flatten,
)
from urg.tracking.mlflow_run import MlflowRun, load_client
from urg.tracking.system_metrics import start_sampling

OFF = "off"
"""The uri of a Tracker that does nothing."""
Status = Literal["FINISHED", "FAILED", "KILLED"]
CLOSE_S: dict[Status, float] = {"FINISHED": 60.0, "KILLED": 10.0, "FAILED": 5.0}
"""Seconds that `close` waits for the server: long where no other process of the run comes that could send the rest. One
that was told to stop has a deadline, and after one that failed the others of a training wait to begin anew."""
_log = logging.getLogger(__name__)


def default_uri(storage: Path) -> str:
    """The SQLite database `mlflow.db` in `storage`, by its absolute path: Ray's workers run in folders of their own."""
    return f"sqlite:///{storage.expanduser().resolve() / 'mlflow.db'}"


def absolute_uri(uri: str, storage: Path) -> str:
    """`uri` such that it means the same in every process: empty is the default; relative SQLite paths become absolute.

    Raises UserError for a folder (MLflow 3 has no file store).
    """
    if not uri:
        return default_uri(storage)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().resolve()}"
    if uri != OFF and ("://" not in uri or uri.startswith("file:")):
        raise UserError(
            f"The tracking uri {uri!r} is no server or database: give sqlite:///FILE.db, http://…, or {OFF}."
        )
    return uri


def last_run(spool: Path) -> str | None:
    """The `run_id` of the newest run that logged through `spool`, to continue it; None where there is none."""
    cards = read_cards(spool)
    return (cards[-1].run_id or f"pending-{cards[-1].key}") if cards else None


class Tracker:
    """One MLflow run, written from one process. Between construction and `close` nothing but `flush` waits for the
    server, and nothing raises for it.

    uri: see `absolute_uri`; "off" does nothing. run_id: an earlier `Tracker.run_id`, to continue; None makes a run.
    spool: a folder for what is not yet on the server; on storage that outlives the process, best in the run's folder.
    connect_timeout: seconds that construction waits for the server before it goes on without; of a run that the server
    has already it waits for nothing.
    system_interval: seconds between samples of CPU and memory; None for none.
    Raises UserError where the uri, the login or the spool folder is unusable; of a run that the server has already, the
    folder alone.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        *,
        spool: Path,
        tags: Mapping[str, object] | None = None,
        connect_timeout: float = 30.0,
        system_interval: float | None = 10.0,
    ) -> None:
        self._run: MlflowRun | None = None
        self._closed = False
        self._stop_sampling = threading.Event()
        if uri == OFF:
            return
        uri, spool = absolute_uri(uri, spool), spool.expanduser().resolve()
        card = find_card(spool, run_id, experiment, run_name)
        card.write(spool)
        self._start_time = card.start_time
        self._journal = Journal(spool, card.key)
        self._run = MlflowRun(uri, card, spool)
        if card.run_id is not None:
            with suppress(Exception):  # the thread reports it
                load_client()  # not beside what the caller imports next: each could find the other's modules half made
        self._sender = Sender(self._journal, self._run, connect_timeout, trusted=card.run_id is not None)
        if run_id is not None:  # behind the end that an earlier process may have left in the spool
            self._add([{"op": "status", "value": "RUNNING"}])
        self.set_tags(tags or {})
        if system_interval is not None:
            start_sampling(self._log_system, system_interval, self._stop_sampling)

    @property
    def run_id(self) -> str:
        """What continues this run: the server's id, or `pending-…` until there is one. Empty when off."""
        return self._run.run_id if self._run else ""

    def log_params(self, params: Mapping[str, object] | object) -> None:
        """Log nested mappings or a dataclass under dotted keys.

        What the run has already is not sent again. A changed value becomes the tag `changed/<key>`, with a warning:
        MLflow's params are final.
        """
        self._add(_text_event("param", key, value, PARAM_LIMIT) for key, value in flatten(params))

    def log_metrics(self, metrics: Mapping[str, object], step: int) -> None:
        """Log numbers at a step. A (metric, step) that the run has keeps its first value; infinite becomes NaN.

        Raises TypeError for a value that is no number.
        """
        point = {"op": "metric", "time": int(time.time() * 1000), "step": int(step)}
        self._add({**point, "key": clean_name(key), "value": clean_number(key, v)} for key, v in metrics.items())

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; the last value of a tag holds."""
        self._add(_text_event("tag", key, value, TAG_LIMIT) for key, value in tags.items())

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Store a file, or all that is in a folder, under `folder` of the run; tried again at `close` if that fails.

        The thread reads it later: leave it in place until `close`.
        """
        self._add([{"op": "artifact", "path": str(path.expanduser().resolve()), "folder": folder}])

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything is on the server, at most `timeout` seconds; False where it is still on disk only."""
        return self._sender.flush(timeout) if self._run else True

    def close(self, status: Status = "FINISHED", timeout: float | None = None) -> bool:
        """End the run with `status`; as `flush`, by default for the seconds that CLOSE_S has for the status. What is
        not on the server then stays in the spool, with a warning."""
        if self._closed or not self._run:
            return True
        self._stop_sampling.set()
        self._add([{"op": "status", "value": status}])
        self._closed = True
        done = self._sender.close(CLOSE_S[status] if timeout is None else timeout)
        if not done:
            spool = self._journal.path.parent
            mend = f"python -m urg.tracking.replay --spool {spool} --uri URI"
            _log.warning("%s has not got everything: the rest is kept; send it with: %s", self._run.name, mend)
        return done

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = kind is not None and not issubclass(kind, Exception)
        self.close("KILLED" if killed else "FAILED" if kind else "FINISHED")

    def _add(self, events: Iterable[Event]) -> None:
        if self._run and not self._closed:
            self._sender.add(list(events))

    def _log_system(self, values: Mapping[str, float]) -> None:
        self.log_metrics(values, step=max(0, round(time.time() - self._start_time)))  # seconds since the run's start


def _text_event(op: str, key: str, value: object, limit: int) -> Event:
    return {"op": op, "key": clean_name(key), "value": clean_text(key, value, limit)}
