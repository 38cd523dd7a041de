"""`python -m cluster.local` and LocalCluster: real nodes, killed, cut off, and gone without a trace at the end."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cluster import network, processes, submit
from cluster.errors import UserError
from cluster.local import described
from cluster.local_cluster import LocalCluster, Node

ROOT = Path(__file__).parents[2]
QUICK = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "500"}
WHO_COMPUTES = """
import ray, sys, time
ray.init(log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=1)
def where():
    time.sleep(1)
    return ray.util.get_node_ip_address()
print(*sorted(set(ray.get([where.remote() for _ in range(2 * int(ray.cluster_resources()["CPU"]))]))))
sys.exit(5)
"""


def local(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.local", *arguments]
    own = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"}  # a trap: it must not be followed
    return subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_command_runs_on_all_nodes_and_gives_its_exit_code() -> None:
    process = local("--nodes", "2", "--run", sys.executable, "-c", WHO_COMPUTES)
    said, errors = process.communicate(timeout=250)
    assert process.returncode == 5, said + errors
    assert said.splitlines()[-1] == "127.0.0.2 127.0.0.3"
    (exports,) = (line for line in said.splitlines() if line.strip().startswith("export RAY_ADDRESS="))
    folder = Path(exports.split("RAY_AUTH_TOKEN_PATH=")[1]).parent
    assert not folder.exists()
    assert [p.pid for p in psutil.process_iter() if f"{folder}/" in " ".join(command_line(p))] == []


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.exhaustive
@pytest.mark.xdist_group("nodes")
@pytest.mark.timeout(240)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2")
def test_a_node_is_cut_off_and_one_is_killed() -> None:
    quick = {f"RAY_health_check_{name}": value for name, value in QUICK.items()}
    with LocalCluster(2, isolate=True, environment=quick) as cluster:
        (worker,) = cluster.workers
        assert set(cluster.alive()) == {cluster.head.address, worker.address}
        cluster.cut_off(worker)
        wait_until(lambda: worker.address not in cluster.alive())
        assert worker.process.poll() is None  # it runs, and nobody hears of it
        new = cluster.add_node(resources={"extra": 1})
        assert new.address in cluster.alive()
        cluster.kill(new)
        assert new.process.poll() is not None
        wait_until(lambda: new.address not in cluster.alive())
        folder, bridge = cluster.folder, network._ip("-o", "link")
    assert f"urgnet{os.getpid()}" in bridge
    assert not folder.exists()
    assert str(os.getpid()) not in network._ip("netns", "list") + network._ip("-o", "link")


def test_the_job_that_is_shown_finds_its_data_and_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job runs in a copy of the checkout without data and runs, which is deleted afterwards."""
    (tmp_path / "my checkout").mkdir()
    monkeypatch.chdir(tmp_path / "my checkout")
    node = SimpleNamespace(address="127.0.0.2")
    cluster = SimpleNamespace(environment=dict, head=node, workers=[], dashboard="http://127.0.0.1:8265")
    (line,) = (line for line in described(cluster).splitlines() if "cluster.submit" in line)
    _, arguments = submit.parse(shlex.split(line)[3:])
    given = dict(itertools.pairwise(arguments))
    assert given["--data.shards"] == str(tmp_path / "my checkout" / "data" / "sample")
    assert given["--storage"] == str(tmp_path / "my checkout" / "runs")


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within 30 seconds")


def test_without_namespaces_a_node_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="need root"):
        network.Network()
    with pytest.raises(UserError, match="at least 1 node"):
        LocalCluster(0)


def test_a_proxy_is_not_shown_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)  # a proxy is asked for a whole URL
            nodes = [{"node_ip": "127.0.0.2", "node_id": "id", "state": "ALIVE"}]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"result": {"result": nodes}}}).encode())

        def log_message(self, *_: object) -> None:
            pass

    cluster = LocalCluster(1)
    cluster._token_file = tmp_path / "token"
    cluster._token_file.write_text("0" * 64)
    with http.server.HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster._dashboard_port = server.server_port
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", cluster.dashboard)
        found = cluster.alive()
        server.shutdown()
    assert found == {"127.0.0.2": "id"}
    assert asked == ["/api/v0/nodes"]


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_node_that_ends_on_its_way_up_is_started_once_more(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, started = LocalCluster(1), []
    cluster.folder = tmp_path
    (tmp_path / "log").write_text("no port")

    def launch(address: str, options: list[str], environment: dict[str, str]) -> Node:
        command = ["false"] if len(started) < failures else ["sleep", "321"]
        started.append(subprocess.Popen(command, start_new_session=True))
        return Node(address, options, environment, tmp_path / "log", started[-1])

    def alive(_: LocalCluster) -> dict[str, str]:
        return {} if started[-1].args == ["false"] else {"127.0.0.2": "id"}

    monkeypatch.setattr(cluster, "_launch", launch)
    monkeypatch.setattr(LocalCluster, "alive", alive)
    node = launch("127.0.0.2", [], {})
    try:
        if failures == 2:
            with pytest.raises(UserError, match=r"127\.0\.0\.2 did not come up; its last words: no port"):
                cluster._wait_for([node])
        else:
            cluster._wait_for([node])
            assert node.process is started[-1]
        assert len(started) == min(failures, 1) + 1
    finally:
        processes.end(started)


def test_kill_takes_the_whole_session_and_nothing_else() -> None:
    script = "sleep 321 & (sleep 321 & exec sleep 321) & setsid sleep 321 & wait"
    leader = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    bystander = subprocess.Popen(["sleep", "321"], start_new_session=True)
    try:
        wait_until(lambda: len(psutil.Process(leader.pid).children(recursive=True)) == 4)
        family = psutil.Process(leader.pid).children(recursive=True)
        processes.kill(leader)
        assert leader.returncode == -signal.SIGKILL
        wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("stop", [processes.kill, lambda leader: processes.end([leader])], ids=["kill", "end"])
def test_another_process_that_has_got_the_id_of_a_dead_leader_lives_on(
    stop: Callable[[subprocess.Popen[bytes]], None],
) -> None:
    dead = subprocess.Popen(["true"], start_new_session=True)
    dead.wait()
    bystander = subprocess.Popen(["sleep", "321"], start_new_session=True)
    try:
        dead.pid = bystander.pid  # as after the ids have come round once: Linux has 32,768 of them
        stop(dead)
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(timeout=0.5)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_remembered_process_whose_id_is_another_s_by_now_is_not_killed() -> None:
    bystander = subprocess.Popen(["sleep", "321"])
    try:
        remembered = psutil.Process(bystander.pid)
        remembered._ident = (remembered.pid, remembered.create_time() - 60)  # an earlier one of this id
        processes._kill({remembered})
        with pytest.raises(subprocess.TimeoutExpired):
            bystander.wait(timeout=0.5)
        processes._kill({psutil.Process(bystander.pid)})
        assert bystander.wait(timeout=30) == -signal.SIGKILL
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "0"], "at least 1 node"),
        (["--cpus", "-1"], "numbers from 0 on"),
        (["--run"], "give the command to run"),
        (["--nodes", "two"], "invalid int value"),
    ],
)
def test_a_wrong_command_line_starts_nothing(arguments: list[str], said: str) -> None:
    process = local(*arguments)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert said in errors
