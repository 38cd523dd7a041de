"""`python -m cluster.submit` against a real cluster that asks for a token, with a checkout whose jobs take no time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from ray.job_submission import JobStatus

from cluster import jobs
from cluster.errors import UserError
from cluster.local_cluster import LocalCluster
from cluster.ports import free_ports
from cluster.submit import MODULES, default_name, entrypoint, parse, start

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(400)

JOB = """
import os, signal, subprocess, sys, time
print("arguments", sys.argv[1:], flush=True)
print("files", sorted(os.listdir(".")), "plain", os.environ.get("PLAIN"), flush=True)
if "--workers" in sys.argv:
    import ray
    ray.init(log_to_driver=False)
    @ray.remote(num_cpus=1)
    def known():
        time.sleep(1)
        return ray.util.get_node_ip_address(), len(os.environ.get("HUB_TOKEN", "")), len(os.environ.get("FILED", ""))
    print("here", len(os.environ.get("HUB_TOKEN", "")), len(os.environ.get("FILED", "")))
    print("there", sorted(set(ray.get([known.remote() for _ in range(4)]))))
    print("processes", subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout)
if "--slow-to-stop" in sys.argv:
    def stop(*_):
        time.sleep(6)  # Ray's own patience is 3 seconds
        open(sys.argv[-1] + ".checkpoint", "w").close()
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    open(sys.argv[-1], "w").close()
    time.sleep(200)
if "--wait-for" in sys.argv:
    while not os.path.exists(sys.argv[-1]):
        time.sleep(0.1)
if "--fail" in sys.argv:
    sys.exit(7)
print("done")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a `urg.train` of its own, and with things that must stay at home."""
    folder = tmp_path / "checkout"
    (folder / "urg").mkdir(parents=True)
    (folder / "urg" / "__init__.py").touch()
    (folder / "urg" / "train.py").write_text(JOB)
    shutil.copytree(ROOT / "cluster", folder / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "runs", ".git", ".venv"):
        (folder / name).mkdir()
        (folder / name / "large").write_text("x")
    (folder / ".env").write_text("HUB_TOKEN=abc")
    (folder / "server.pem").write_text("secret")
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cluster.submit", *arguments]


def environment(cluster: LocalCluster | None = None, **more: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**own, "PYTHONPATH": str(ROOT), **(cluster.environment() if cluster else {}), **more}


def submit(cluster: LocalCluster, checkout: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(cluster, **more), cwd=checkout, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_job_is_followed_to_its_end_and_gives_its_exit_code(
    two_nodes: LocalCluster, checkout: Path, hub_token: str
) -> None:
    secret_file = checkout.parent / "filed"
    secret_file.write_text(hub_token + "\n")
    options = ["--env", "PLAIN=seen", "--secret", "HUB_TOKEN", "--secret", f"FILED={secret_file}", "--name", "first"]
    done = submit(two_nodes, checkout, "train", *options, "--", "--workers", "a b")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arguments ['--workers', 'a b']" in done.stdout
    assert "files ['cluster', 'urg'] plain seen" in done.stdout
    length = len(hub_token)
    assert f"here {length} {length}" in done.stdout
    addresses = sorted(node.address for node in (two_nodes.head, *two_nodes.workers))
    assert f"there {[(address, length, length) for address in addresses]}" in done.stdout
    assert done.stdout.rstrip().endswith("done")
    running = done.stdout.partition("processes")[2]
    assert "-m urg.train --workers a b" in running  # the job's own, and the workers that have the secret
    assert "ray::" in running
    assert hub_token not in description("first", two_nodes) + done.stdout + done.stderr

    failed = submit(two_nodes, checkout, "train", "--name", "first", "--", "--fail")
    assert failed.returncode == 7
    assert "submitted job first-2 (before it: first, succeeded)" in failed.stdout


def description(submission_id: str, cluster: LocalCluster) -> str:
    """All that the Jobs API tells of a job."""
    code = f"from ray.job_submission import JobSubmissionClient as C; print(C().get_job_info({submission_id!r}).json())"
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment(cluster), capture_output=True, text=True, check=True
    )
    assert submission_id in told.stdout
    assert "HUB_TOKEN" in told.stdout  # by name
    return told.stdout


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.xdist_group("nodes")
def test_ray_job_stop_waits_for_the_checkpoint(two_nodes: LocalCluster, checkout: Path) -> None:
    begun = checkout.parent / "begun"
    started = submit(two_nodes, checkout, "train", "--name", "stopped", "--no-wait", "--", "--slow-to-stop", str(begun))
    assert started.returncode == 0, started.stderr
    for _ in range(600):
        if begun.exists():
            break
        time.sleep(0.1)
    stop = [str(Path(sys.executable).with_name("ray")), "job", "stop", "stopped"]
    subprocess.run(stop, env=environment(two_nodes), capture_output=True, text=True, timeout=120, check=True)
    assert Path(f"{begun}.checkpoint").exists()


@pytest.mark.slow
def test_a_running_job_is_joined_and_ctrl_c_leaves_it_running(two_nodes: LocalCluster, checkout: Path) -> None:
    gate = checkout.parent / "gate"
    options = ["train", "--name", "long", "--", "--wait-for", str(gate)]
    started = submit(two_nodes, checkout, *options[:3], "--no-wait", *options[3:])
    assert started.returncode == 0, started.stderr
    assert "ray job stop" in started.stdout
    follower = subprocess.Popen(
        command(*options),
        env=environment(two_nodes),
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    assert "job long is" in follower.stdout.readline()
    time.sleep(1)
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=120)
    assert follower.returncode == 130
    assert "job long runs on" in said
    other = submit(two_nodes, checkout, "train", "--name", "long", "--", "--other")
    assert other.returncode == 2
    assert "with another command" in other.stderr
    gate.touch()
    joined = submit(two_nodes, checkout, *options)
    if "following it" in joined.stdout:  # otherwise it had ended, and a second attempt ran
        assert joined.stdout.count("arguments") == 1
    assert joined.returncode == 0
    assert joined.stdout.rstrip().endswith("done")


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(two_nodes: LocalCluster, checkout: Path) -> None:
    missing = submit(two_nodes, checkout, "train", "--secret", "NOT_THERE", "--name", "missing", "--", "x")
    assert missing.returncode != 0
    assert "secret NOT_THERE is not on the node" in missing.stdout + missing.stderr
    wrong = submit(two_nodes, checkout, "train", "--", "x", RAY_AUTH_TOKEN="0" * 64)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "refuses the token" in wrong.stderr
    (port,) = free_ports(1)
    away = submit(two_nodes, checkout, "train", "--address", f"http://127.0.0.1:{port}", "--", "x")
    assert (away.returncode, len(away.stderr.splitlines())) == (2, 1)
    assert f"no cluster answers at http://127.0.0.1:{port}" in away.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--env", "HF_TOKEN=abc"], "looks like a secret"),
        (["train", "--env", "PGPASSWORD=abc"], "looks like a secret"),
        (["train", "--env", "URL=http://a:b@c"], "looks like a secret"),
        (["train", "--env", "A-B=c"], "give KEY=VALUE"),
        (["train", "--secret", "HF_TOKEN=abc"], "never the value"),
        (["train", "--", "--tracking.uri", "https://me:pw@mlflow"], "has a password or a token in it"),
        (["train", "--name", "a/b"], "letters, digits"),
        (["sweep"], "no tuning.sweep"),
        (["train", "--working-dir", "/nowhere"], "has no package urg"),
    ],
)
def test_a_wrong_command_line_sends_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    for package in ("urg", "tuning"):
        (tmp_path / package).mkdir()
    (tmp_path / "urg" / "train.py").touch()
    done = subprocess.run(
        command(*arguments), env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert "abc" not in done.stderr
    assert "pw" not in done.stderr


class Flaky:
    """A Jobs API whose connection breaks in the middle of the log."""

    def __init__(self, error: Exception, status: str = "SUCCEEDED", code: int | None = 0) -> None:
        self._errors, self._status, self._code = [error], status, code

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        yield "one\ntwo"
        if self._errors:
            raise self._errors.pop()
        yield "\nthree\n"

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        return SimpleNamespace(
            status=JobStatus(self._status), driver_exit_code=self._code, message="why, last available logs: one"
        )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("error", [RuntimeError("closed"), ConnectionError("gone"), aiohttp.ServerDisconnectedError()])
@pytest.mark.usefixtures("impatient")
def test_a_broken_tunnel_repeats_no_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.follow(Flaky(error), "mine") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


@pytest.mark.usefixtures("impatient")
def test_a_job_that_ends_badly_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.follow(Flaky(RuntimeError("x"), "FAILED", 7), "mine") == 7
    assert jobs.follow(Flaky(RuntimeError("x"), "FAILED", None), "mine") == 1
    assert jobs.follow(Flaky(RuntimeError("x"), "STOPPED", -15), "mine") == 1
    assert capsys.readouterr().err.splitlines()[0] == "job mine failed: why"


class Restarted:
    """A Jobs API that does not know the job: Ray refuses the log's websocket with 404, whose text nobody reads."""

    def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        raise aiohttp.WSServerHandshakeError(SimpleNamespace(real_url="http://head"), (), status=404)

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        raise RuntimeError(f"Request failed with status code 404: Job {submission_id} does not exist.")


def test_a_head_that_is_another_is_found_out_at_once() -> None:
    with pytest.raises(UserError, match="no longer knows job mine: its head was restarted"):
        jobs.follow(Restarted(), "mine")


def test_a_head_that_forgot_the_job_or_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no longer knows job mine"):
        jobs.follow(Flaky(RuntimeError("Job mine does not exist")), "mine")
    monkeypatch.setattr(jobs, "LOST_SECONDS", -1.0)
    flaky = Flaky(RuntimeError("x"))
    flaky._errors *= 2
    with pytest.raises(UserError, match="may run on"):
        jobs.follow(flaky, "mine")


def known_jobs(*described: tuple[str | None, str | None, int]) -> list[SimpleNamespace]:
    """Jobs of (id, name in the metadata or None where there are no metadata, attempt)."""
    return [
        SimpleNamespace(
            submission_id=submission_id,
            metadata=None if name is None else {jobs.NAME: name, jobs.ATTEMPT: str(attempt)},
            status=JobStatus.SUCCEEDED,
        )
        for submission_id, name, attempt in described
    ]


def test_attempts_are_counted_by_number() -> None:
    others = [("runs", "runs", 1), ("run-b", "run-b", 1), (None, None, 1), ("other", None, 1)]
    known = known_jobs(("run", "run", 1), ("run-10", "run", 10), ("run-2", "run", 2), *others)
    assert [job.submission_id for job in jobs.attempts(known, "run")] == ["run", "run-2", "run-10"]
    assert jobs.next_attempt(known, "run") == jobs.Attempt("run", 11, "run-11")
    assert jobs.next_attempt(known_jobs(*others), "run") == jobs.Attempt("run", 1, "run")


def test_a_run_that_is_called_like_another_ones_second_attempt_is_another_run() -> None:
    known = known_jobs(("train-xl", "train-xl", 1))
    assert jobs.attempts(known, "train-xl-2") == []
    other = jobs.next_attempt(known, "train-xl-2")
    assert other.submission_id == "train-xl-2"
    known += known_jobs((other.submission_id, other.name, other.number))
    again = jobs.next_attempt(known, "train-xl")
    assert (again.number, again.submission_id) == (2, "train-xl-2-2")
    known += known_jobs((again.submission_id, again.name, again.number))
    assert [job.submission_id for job in jobs.attempts(known, "train-xl")] == ["train-xl", "train-xl-2-2"]
    assert [job.submission_id for job in jobs.attempts(known, "train-xl-2")] == ["train-xl-2"]
    assert jobs.next_attempt(known, "train-xl-2").submission_id == "train-xl-2-2-2"


def test_a_job_carries_its_name_and_attempt() -> None:
    sent: list[dict[str, object]] = []
    client = SimpleNamespace(list_jobs=lambda: known_jobs(("a", "a", 1)), submit_job=lambda **job: sent.append(job))
    assert start(client, "a", "python -m urg.train", {"env_vars": {}}) == "a-2"
    (job,) = sent
    assert job["metadata"] == {"urg.name": "a", "urg.attempt": "2"}
    assert job["submission_id"] == "a-2"


SECRETS = ["PGPASSWORD", "MYSQL_PWD", "HFTOKEN", "hf_token", "GITHUB_PAT", "REDISCLI_AUTH", "WANDB_API_KEY", "APIKEY"]
SECRETS += ["DB_PASS", "AWS_CREDS", "SSH_KEYS"]
SECRETS += ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "SSH_PRIVATE_KEY", "DB_CREDENTIALS", "KEY", "RAY_AUTH_TOKEN"]
NO_SECRETS = ["TOKENIZERS_PARALLELISM", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "BATCH_TOKENS", "MAX_TOKENS", "PATH"]
NO_SECRETS += ["TOKEN_LIMIT", "AUTHOR", "KEYBOARD", "NCCL_SOCKET_IFNAME", "GOOGLE_APPLICATION_CREDENTIALS", "HF_HOME"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_that_is_named_as_a_secret_is_refused(name: str) -> None:
    from cluster.runtime_environment import runtime_environment

    with pytest.raises(UserError, match=f"--env {name}=… looks like a secret") as raised:
        runtime_environment(ROOT, [f"{name}=v4lue"], [], "urg.train")
    assert "v4lue" not in str(raised.value)


@pytest.mark.parametrize("name", NO_SECRETS)
def test_other_variables_are_sent(name: str) -> None:
    from cluster.runtime_environment import runtime_environment

    assert runtime_environment(ROOT, [f"{name}=3"], [], "urg.train")["env_vars"][name] == "3"


@pytest.mark.parametrize(
    ("argument", "hidden"),
    [
        ("https://me:pw@mlflow/", "pw"),
        ("--tracking.uri=https://ghp_abc@mlflow", "ghp_abc"),
        ("postgresql://u:p/w@host/db", "p/w"),
        ("postgresql+psycopg2://u:p:w#x@host/db", "p:w"),
        ('{"uri": "mysql://:pw@host"}', "pw"),
        ("postgresql://host/db?user=u&password=pw", "pw"),
        ("https://bucket.s3.amazonaws.com/x?X-Amz-Signature=0f0f", "0f0f"),
    ],
)
def test_a_login_in_a_url_is_refused_and_not_repeated(argument: str, hidden: str) -> None:
    from cluster.runtime_environment import require_no_secret, runtime_environment

    with pytest.raises(UserError, match="has a password or a token in it") as raised:
        require_no_secret(["--x", argument])
    assert hidden not in str(raised.value)
    with pytest.raises(UserError, match="looks like a secret") as raised:
        runtime_environment(ROOT, [f"A={argument}"], [], "urg.train")
    assert hidden not in str(raised.value)


@pytest.mark.parametrize(
    "argument",
    [
        "http://mlflow.urg-mlflow:5000",
        "http://10.0.0.1:5000/a@b",
        '["http://a:8000/v1", "http://b:8000/v1", "me@host"]',
        "postgresql://mlflow@database:5432/mlflow",
        "s3://bucket/a:b@c",
        "https://host/x?tokens=5",
        "me@host",
    ],
)
def test_a_url_without_a_login_passes(argument: str) -> None:
    from cluster.runtime_environment import require_no_secret

    require_no_secret([argument])


def test_a_variable_named_after_tokenizers_is_no_secret() -> None:
    from cluster.runtime_environment import runtime_environment

    found = runtime_environment(ROOT, ["TOKENIZERS_PARALLELISM=false", "A=b=c"], [], "urg.train")
    assert found["env_vars"].items() >= {"TOKENIZERS_PARALLELISM": "false", "A": "b=c", "PYTHONUNBUFFERED": "1"}.items()
    assert "worker_process_setup_hook" not in found


def test_a_job_knows_the_commit_that_was_sent(tmp_path: Path) -> None:
    from cluster.runtime_environment import COMMIT, runtime_environment

    (tmp_path / "urg").mkdir()
    (tmp_path / "urg" / "train.py").touch()
    assert COMMIT not in runtime_environment(tmp_path, [], [], "urg.train")["env_vars"]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for step in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *step], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    sent = runtime_environment(tmp_path, [], [], "urg.train")["env_vars"]
    assert sent[COMMIT] == head[:12]
    (tmp_path / "urg" / "train.py").write_text("changed")
    sent = runtime_environment(tmp_path, [], [], "urg.train")["env_vars"]
    assert sent[COMMIT] == f"{head[:12]}+"


AT_HOME = [".env", ".env.local", ".netrc", "server.pem", "a/server.key", "a/b.p12", "b.pfx", "id_rsa", "id_ed25519.pub"]
AT_HOME += [".aws/credentials", ".ssh/config", "cluster/mlflow/database_password", ".git/config", ".venv/pyvenv.cfg"]
AT_HOME += ["data/shard", "runs/xl/model", "a/__pycache__/b.pyc", "urg.egg-info/PKG-INFO"]
SENT = ["cluster/mlflow/compose.yaml", "data_pipeline/sample/base/model.safetensors", "urg/data/runs.py"]


@pytest.mark.parametrize("by", ["cluster.submit", "ray job submit"])
def test_no_secret_is_sent_with_a_checkout(by: str, tmp_path: Path) -> None:
    """By the options that our command gives to Ray, and by the file that Ray itself finds in a checkout."""
    from ray._private.runtime_env.packaging import create_package

    from cluster.runtime_environment import EXCLUDES

    folder = tmp_path / "checkout"
    for name in AT_HOME + SENT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    if by == "ray job submit":
        shutil.copy(ROOT / ".rayignore", folder)
    excludes = list(EXCLUDES) if by == "cluster.submit" else []
    # Ray heeds a .gitignore as well, where it finds one and is not told to ignore it.
    create_package(str(folder), tmp_path / "sent.zip", include_gitignore=False, excludes=excludes)
    with zipfile.ZipFile(tmp_path / "sent.zip") as sent:
        names = {name for name in sent.namelist() if not name.endswith("/")}
    assert names - {".rayignore"} == set(SENT)


def test_ray_leaves_out_the_same_files_without_our_command() -> None:
    from cluster.runtime_environment import EXCLUDES

    lines = (ROOT / ".rayignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == list(EXCLUDES)


def test_every_file_of_the_project_reaches_the_job() -> None:
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, timeout=240)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name]
    assert len(names) > 100
    excludes = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    assert len(excludes) == 2
    assert [name for name in names if any(exclude(ROOT / name) for exclude in excludes)] == []


def test_a_stopped_job_has_the_time_for_a_checkpoint() -> None:
    from cluster.runtime_environment import runtime_environment

    name = "RAY_JOB_STOP_WAIT_TIME_S"
    assert int(runtime_environment(ROOT, [], [], "urg.train")["env_vars"][name]) == 900
    assert runtime_environment(ROOT, [f"{name}=5"], [], "urg.train")["env_vars"][name] == "5"


def test_every_command_is_a_module_of_the_project() -> None:
    from cluster.runtime_environment import module_file

    assert set(MODULES) == {"prepare", "train", "evaluate", "sweep", "reproduce"}
    assert [module for module in MODULES.values() if not module_file(ROOT, module).is_file()] == []


def test_the_same_command_has_the_same_name() -> None:
    assert default_name("train", ["--config", "sample", "--name", "mine"]) == "train-mine"
    assert default_name("train", ["--name=mine"]) == "train-mine"
    assert default_name("train", ["--steps", "3"]) == default_name("train", ["--steps", "3"])
    assert default_name("train", ["--steps", "3"]) != default_name("train", ["--steps", "4"])
    assert default_name("train", ["--model.base", "--names"]).startswith("train-")


def test_arguments_after_the_dashes_are_the_commands() -> None:
    options, arguments = parse(["train", "--name", "a", "--", "--name", "b", "--", "c d"])
    assert (options.name, arguments) == ("a", ["--name", "b", "--", "c d"])
    assert entrypoint("urg.train", arguments, False) == "python -m urg.train --name b -- 'c d'"
    assert entrypoint("urg.train", [], True) == "python -m cluster.secret_references python -m urg.train"


def test_a_token_file_that_went_with_its_cluster_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray.exceptions import AuthenticationError

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for is_there, said in ((False, "token is no file: .* unset RAY_ADDRESS"), (True, "refuses the token")):
        if is_there:
            (tmp_path / "token").write_text("wrong")
        with pytest.raises(UserError, match=said), jobs.clear_errors("http://127.0.0.1:1"):
            raise AuthenticationError("no")
