import contextlib
import fcntl
import math
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from tests.mlflow_server import dead_uri, mlflow_server
from urg.tracking import OFF, Tracker, absolute_uri, default_uri, last_run
from urg.tracking.journal import RunCard
from urg.tracking.mlflow_run import Finished, MlflowRun, log_finished_runs, register_model, tag_experiment
from urg.tracking.replay import ReplayConfig, replay
from urg.tracking.tracker import CLOSE_S

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A SQLite store; one for the module, since its migrations take some seconds."""
    return default_uri(tmp_path_factory.mktemp("mlflow"))


def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def steps(uri, run_id, key="loss"):
    return [metric.step for metric in client(uri).get_metric_history(run_id, key)]


def tracker(uri, spool, run_id=None, **options):
    return Tracker(uri, "test", "run", run_id, spool=spool, system_interval=None, **options)


def test_import_loads_no_mlflow():
    script = "import sys, urg.tracking; print([m for m in ('mlflow', 'torch', 'ray') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert shown.stdout.strip() == "[]", shown.stderr


def test_a_whole_run(uri, tmp_path, capfd):
    (tmp_path / "config.yaml").write_text("k: 3")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "card.md").write_text("# card")
    with tracker(uri, tmp_path / "spool", tags={"git.commit": "abc"}) as run:
        run.log_params({"loss": {"tau": 0.5}, "prompt": "x" * 7000, **{f"p{i}": i for i in range(150)}})
        for step in range(1500):
            run.log_metrics({"loss": 1 / (step + 1)}, step)
        run.log_artifact(tmp_path / "config.yaml")
        run.log_artifact(tmp_path / "model", "model")
    stored = client(uri).get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["loss.tau"] == "0.5"
    assert stored.data.params["prompt"].endswith("[cut: 7000 characters]")
    assert len(stored.data.params) == 152
    assert stored.data.tags["git.commit"] == "abc"
    assert steps(uri, run.run_id) == list(range(1500))
    assert [file.path for file in client(uri).list_artifacts(run.run_id)] == ["config.yaml", "model"]
    assert stored.info.artifact_uri.startswith(Path(uri.removeprefix("sqlite:///")).parent.as_uri())
    assert not list((tmp_path / "spool").glob("*.jsonl"))
    shown = capfd.readouterr()
    assert "alembic" not in shown.err
    assert "INFO" not in shown.err + shown.out


def test_non_finite_values_do_not_lose_their_neighbours(uri, tmp_path):
    with tracker(uri, tmp_path) as run:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0]):
            run.log_metrics({"loss": value, "other": step}, step)
    history = client(uri).get_metric_history(run.run_id, "loss")
    values = {metric.step: metric.value for metric in history}
    assert values.pop(0) == 1.0
    assert values.pop(4) == 2.0
    assert all(math.isnan(value) for value in values.values())
    assert len(values) == 3
    assert steps(uri, run.run_id, "other") == list(range(5))


def test_a_continued_run_goes_on_and_doubles_nothing(uri, tmp_path, caplog):
    with tracker(uri, tmp_path) as first:
        first.log_params({"seed": 1, "lr": 0.1})
        for step in range(130):
            first.log_metrics({"loss": float(step)}, step)
    with tracker(uri, tmp_path, first.run_id) as second:
        assert second.flush()
        assert client(uri).get_run(second.run_id).info.status == "RUNNING"
        second.log_params({"seed": 1, "lr": 0.2, "workers": 2})
        for step in range(100, 200):  # from the last checkpoint on
            second.log_metrics({"loss": float(step)}, step)
    assert second.run_id == first.run_id == last_run(tmp_path)
    assert steps(uri, first.run_id) == list(range(200))
    run = client(uri).get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "lr": "0.1", "workers": "2"}
    assert run.data.tags["changed/lr"] == "0.2"
    assert "began with other values of lr" in caplog.text


def test_a_run_that_goes_on_is_running_though_its_failure_comes_late(uri, tmp_path):
    """MLflow was away when the first process failed: its end is sent with the rest by the next one."""
    with tracker(uri, tmp_path) as first:
        pass
    failed = tracker(dead_uri(), tmp_path, first.run_id)
    assert not failed.close("FAILED", timeout=0.1)
    failed._sender._thread.join(60)
    with tracker(uri, tmp_path, first.run_id) as second:
        assert second.flush()
        assert client(uri).get_run(first.run_id).info.status == "RUNNING"
    assert client(uri).get_run(first.run_id).info.status == "FINISHED"


def test_a_run_that_the_server_does_not_have_is_made_anew(uri, tmp_path, caplog):
    with tracker(uri, tmp_path, "0" * 32) as run:
        run.log_metrics({"loss": 1.0}, 0)
    assert run.run_id != "0" * 32
    assert steps(uri, run.run_id) == [0]
    assert "a new one is made" in caplog.text


def test_a_missing_artifact_is_a_warning(uri, tmp_path, caplog):
    run = tracker(uri, tmp_path)
    run.log_artifact(tmp_path / "report.html")
    run.log_metrics({"loss": 1.0}, 0)
    assert run.close()
    assert "report.html could not be stored" in caplog.text
    assert steps(uri, run.run_id) == [0]


def test_an_artifact_that_comes_late_is_stored_at_close(uri, tmp_path):
    run = tracker(uri, tmp_path / "spool")
    run.log_artifact(tmp_path / "report.html")
    assert run.flush()
    (tmp_path / "report.html").write_text("<p>")
    assert run.close()
    assert [file.path for file in client(uri).list_artifacts(run.run_id)] == ["report.html"]


def test_system_metrics_are_logged(uri, tmp_path):
    run = Tracker(uri, "test", "run", spool=tmp_path, system_interval=0.05)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not steps(uri, run.run_id, "system/process_memory_megabytes"):
        time.sleep(0.2)
    run.close()
    found = steps(uri, run.run_id, "system/process_memory_megabytes")
    assert found
    assert found == sorted(set(found))


def test_one_refused_name_does_not_take_the_others_with_it(uri, tmp_path, caplog):
    run = tracker(uri, tmp_path)
    points = [
        {"op": "metric", "key": "bad\nname" if i == 5 else f"m{i}", "value": 1.0, "time": 1, "step": 0}
        for i in range(9)
    ]
    run._add(points)  # past the cleaning of names
    assert run.close()
    assert sorted(client(uri).get_run(run.run_id).data.metrics) == [f"m{i}" for i in range(9) if i != 5]
    assert "it is left out" in caplog.text


def test_off_does_nothing(tmp_path):
    with Tracker(OFF, "test", "run", spool=tmp_path / "spool") as run:
        run.log_params({"seed": 1})
        run.log_metrics({"loss": 1.0}, 0)
        run.log_artifact(tmp_path)
        assert run.flush()
    assert run.run_id == ""
    assert not (tmp_path / "spool").exists()


def test_uris_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("", Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert absolute_uri("sqlite:///x.db", tmp_path) == f"sqlite:///{tmp_path}/x.db"
    assert absolute_uri("http://host:5000", tmp_path) == "http://host:5000"
    for folder in ("mlruns", "file:///tmp/mlruns"):
        with pytest.raises(UserError, match=r"give sqlite:///FILE\.db"):
            absolute_uri(folder, tmp_path)


@pytest.mark.parametrize("database", ["notes.txt/mlflow.db", "notes.txt"])
def test_an_unusable_database_is_one_sentence(tmp_path, database):
    (tmp_path / "notes.txt").write_text("not a database, but a text that is long enough to be looked at as one" * 20)
    spool = tmp_path / "spool"
    for _ in range(2):  # the second time the run is continued, and has never reached a database
        with pytest.raises(UserError, match=r"notes\.txt.* cannot be used .*: check the tracking uri"):
            tracker(f"sqlite:///{tmp_path}/{database}", spool, run_id=last_run(spool), connect_timeout=120)


@pytest.mark.faults
def test_a_server_that_was_never_there_costs_nothing_but_a_warning(uri, tmp_path, caplog):
    """Killed while MLflow was away all the time: the next process has everything, and no login is shown or kept."""
    away = dead_uri().replace("//", "//ann:hunter2@")
    script = f"""
import os, signal
from pathlib import Path
from urg.tracking import Tracker
run = Tracker({away!r}, "test", "killed", spool=Path({str(tmp_path)!r}), tags={{"a": "b"}}, system_interval=None)
assert run.run_id.startswith("pending-")
run.log_params({{"seed": 1, "uri": {away!r}}})
for step in range(50):
    run.log_metrics({{"loss": 1.0}}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "does not answer" in killed.stderr
    assert "hunter2" not in killed.stderr
    assert not any("hunter2" in path.read_text() for path in tmp_path.iterdir())

    with tracker(uri, tmp_path, last_run(tmp_path)) as run:
        for step in range(40, 60):
            run.log_metrics({"loss": 1.0}, step)
    stored = client(uri).get_run(run.run_id)
    assert stored.info.run_name == "killed"
    assert stored.data.params == {"seed": "1", "uri": away.replace("ann:hunter2", "***")}
    assert stored.data.tags["a"] == "b"
    assert steps(uri, run.run_id) == list(range(60))


REQUEST_S = 120
"""How long MLflow's client waits for an answer where a test says so: who waits for one cannot be overlooked."""


@pytest.fixture
def silent(monkeypatch):
    """A server that takes connections and never answers; `accept` tells that a request is under way."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_S))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.mark.faults
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "continued"])
def test_no_call_waits_for_a_server_that_never_answers(uri, tmp_path, silent, is_new):
    """While a request is under way, which only this test could answer, every call returns: within a fraction of what
    the client waits for one answer. A run that the server has already is not waited for when it is continued either."""
    config, spool, known = tmp_path / "config.yaml", tmp_path / "spool", None
    config.write_text("k: 3")
    if not is_new:
        with tracker(uri, spool) as first:
            log(first, range(1))
        known = first.run_id
    away, begun = f"http://127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
    run = tracker(away, spool, known, connect_timeout=0.2 if is_new else 2 * REQUEST_S)
    connection, _ = silent.accept()
    with connection:
        assert connection.recv(4) == b"GET "
        run.log_params({"seed": 1})
        run.set_tags({"a": "b"})
        run.log_artifact(config)
        log(run, range(1, 1000))
        assert not run.flush(0.01)
        assert not run.close("FAILED")
        assert time.monotonic() - begun < REQUEST_S / 2
        assert run._sender._thread.is_alive()  # it waits for the answer to that one request
    silent.close()
    run._sender._thread.join(60)
    with tracker(uri, spool, last_run(spool)) as again:
        log(again, range(1000, 1010))
    assert steps(uri, again.run_id) == list(range(1 if is_new else 0, 1010))
    stored = client(uri).get_run(again.run_id)
    assert (stored.info.status, stored.data.params, stored.data.tags["a"]) == ("FINISHED", {"seed": "1"}, "b")
    assert [file.path for file in client(uri).list_artifacts(again.run_id)] == ["config.yaml"]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ZeroDivisionError, "FAILED")]
)
def test_how_long_the_end_waits_goes_by_the_status(uri, tmp_path, monkeypatch, error, status):
    """Others wait for a worker that failed: it takes the least."""
    run, given = tracker(uri, tmp_path), []
    close = run._sender.close
    monkeypatch.setattr(run._sender, "close", lambda timeout: given.append(timeout) or close(60))
    with contextlib.suppress(KeyboardInterrupt, ZeroDivisionError), run:
        if error:
            raise error
    assert given == [CLOSE_S[status]]
    assert client(uri).get_run(run.run_id).info.status == status
    assert CLOSE_S["FAILED"] < CLOSE_S["KILLED"] < CLOSE_S["FINISHED"]


def test_replay_sends_what_a_closed_run_left(uri, tmp_path, caplog, capsys):
    (tmp_path / "report.html").write_text("<p>")
    spool = tmp_path / "spool"
    run = tracker(dead_uri(), spool)
    run.log_metrics({"loss": 1.0}, 0)
    run.log_artifact(tmp_path / "report.html")
    assert not run.close("KILLED", timeout=2)
    assert f"python -m urg.tracking.replay --spool {spool}" in caplog.text

    with pytest.raises(UserError, match="does not answer"):
        replay(ReplayConfig(spool, dead_uri()))
    for _ in range(2):
        replay(ReplayConfig(spool, uri))
    assert capsys.readouterr().out.count("sent: run") == 1
    run_id = last_run(spool)
    assert steps(uri, run_id) == [0]
    assert client(uri).get_run(run_id).info.status == "KILLED"
    assert [file.path for file in client(uri).list_artifacts(run_id)] == ["report.html"]
    assert not list(spool.glob("*.jsonl"))


def test_replay_of_nothing_is_an_error(uri, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="No MLflow server is named"):
        replay(ReplayConfig(tmp_path))
    with pytest.raises(UserError, match="holds nothing"):
        replay(ReplayConfig(tmp_path, uri))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(420)
def test_a_real_server_killed_hung_and_restarted_has_every_point_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    (tmp_path / "config.yaml").write_text("k: 3")
    with mlflow_server(tmp_path / "server") as server:
        run = tracker(server.uri, tmp_path / "spool")
        assert not run.run_id.startswith("pending-")
        run.log_params({"seed": 1})
        log(run, range(100), extra=math.nan)
        assert run.flush(60)

        server.kill()
        log(run, range(100, 200))
        assert not run.flush(2)
        server.start()
        log(run, range(200, 300))
        assert run.flush(90)

        server.signal(signal.SIGSTOP)  # takes connections, answers nothing
        log(run, range(300, 400))
        assert not run.flush(8)  # long enough for a request whose outcome the client cannot know
        server.signal(signal.SIGCONT)
        assert run.flush(90)
        run.log_artifact(tmp_path / "config.yaml")
        assert run.close(timeout=90)

        with tracker(server.uri, tmp_path / "spool", run.run_id) as again:
            log(again, range(350, 500))
        assert again.run_id == run.run_id
        assert steps(server.uri, run.run_id) == list(range(500))
        stored = client(server.uri).get_run(run.run_id)
        assert (stored.info.status, stored.data.params) == ("FINISHED", {"seed": "1"})
        assert [file.path for file in client(server.uri).list_artifacts(run.run_id)] == ["config.yaml"]
        assert math.isnan(stored.data.metrics["extra"])
        assert not list((tmp_path / "spool").glob("*.jsonl"))


def log(run, span, extra=None):
    for step in span:
        run.log_metrics({"loss": float(step)} | ({} if extra is None else {"extra": extra}), step)


@pytest.mark.slow
def test_processes_that_begin_at_once_make_one_database(tmp_path):
    """MLflow makes its tables on the first connection, step by step; each found those of the other and ended."""
    script = (
        "import sys, pathlib; from urg.tracking.journal import RunCard; from urg.tracking.mlflow_run import MlflowRun;"
        "spool = pathlib.Path(sys.argv[1]); name = sys.argv[3];"
        "run = MlflowRun(sys.argv[2], RunCard(name, name, name, 0.0), spool); run.connect()"
    )
    command = [sys.executable, "-c", script, str(tmp_path), default_uri(tmp_path)]
    begun = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("a", "b")]
    assert [(process.communicate()[1][-500:], process.returncode)[1] for process in begun] == [0, 0]


OPENERS = {
    "connect": lambda uri, folder: MlflowRun(uri, RunCard("a", "a", "a", 0.0), folder).connect(),
    "register_model": lambda uri, folder: register_model(uri, "id", folder, "a", "champion", {"m": "1"}, "m"),
    "tag_experiment": lambda uri, folder: tag_experiment(uri, "a", {}),
    "log_finished_runs": lambda uri, folder: log_finished_runs(uri, "a", Finished("a", {}), [], "key"),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_whoever_opens_a_database_holds_its_lock(opener, tmp_path, monkeypatch):
    """While MLflow makes its tables; not after, for a run is logged for hours."""
    uri = default_uri(tmp_path)
    lock = Path(uri.removeprefix("sqlite:///")).with_name(f".{Path(uri).name}.lock")
    held = []

    def is_held():
        with lock.open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    class Opened(Exception):
        pass

    class Client:
        def __init__(self, uri):
            held.append(is_held())

        def __getattr__(self, name):
            held.append(is_held())
            raise Opened

    monkeypatch.setattr("mlflow.tracking.MlflowClient", Client)
    with pytest.raises(Opened):
        OPENERS[opener](uri, tmp_path)
    assert held == [True, False]
