"""`ray job submit --working-dir . -- python -m urg.train …` on a real `ray start --head`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
RAY = Path(sys.executable).with_name("ray")


TOKEN = secrets.token_hex(16)


def _environment() -> dict[str, str]:
    """Ours, as in an activated virtual environment, for a cluster that asks for a token."""
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    own["PATH"] = f"{RAY.parent}{os.pathsep}{own['PATH']}"
    return own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A Ray head of its own, on loopback; yields its Jobs address."""
    gcs, dashboard, client, agent, agent_grpc, metrics = _free_ports(6)
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=3"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}"]
    # The agent starts jobs; its default port may be taken by another Ray of this machine, that of the other tests say.
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += [f"--metrics-export-port={metrics}", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment(), start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_healthy(address, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the Ray head has ended"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
        except urllib.error.HTTPError as error:
            if error.code == 401:  # it is up, and wants its token
                return
            raise
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the Ray head did not come up")


def _submit(address: str, entry: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Submit and wait for the end; a head that is up may still lack the agent that starts jobs."""
    command = [RAY, "job", "submit", f"--address={address}", "--working-dir", str(ROOT), "--", *entry]
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=_environment())
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(2)
    return done


def _require_tracked(runs: Path) -> None:
    """MLflow has what a run must leave there."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("urg").experiment_id])
    assert run.info.status == "FINISHED"
    terms = {f"train/{name}" for name in ("rank", "kl", "ce", "ce_last", "loss", "lr", "tokens_per_s", "useful_tokens")}
    assert terms | {"train/grad_ratio_rank_to_ce", "dev/rougeL", "dev/label"} <= run.data.metrics.keys()
    assert run.data.params["loss.gamma"] == "5.0"
    assert run.data.params["global_batch"] == "4"
    assert {"git_commit", "data"} <= run.data.tags.keys()
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "manifest.json", "README.md"} <= artifacts


def test_a_submitted_job_prepares_and_trains(head: str, tmp_path: Path) -> None:
    prepare = [
        "python",
        "-m",
        "data_pipeline.prepare",
        "--sample.train",
        "16",
        "--sample.dev",
        "4",
        "--sample.test",
        "4",
    ]
    shape = [f"--model.scratch.{key}=16" for key in ("d_model", "d_ff")] + ["--model.scratch.d_kv=4"]
    options = ["--name=job", f"--storage={tmp_path / 'runs'}", "--data.label=rougeL", "--eval.metric=rougeL"]
    options += ["--steps=2", "--eval.max_new_tokens=4", "--eval.rows=2", "--engine.workers=2", "--batch.micro=2"]
    data = tmp_path / "data"
    for entry in (
        [*prepare, f"--output={data}"],
        ["python", "-m", "urg.train", f"--data.shards={data}", *options, *shape],
    ):
        done = _submit(head, entry, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "step 2/2" in done.stdout
    assert (tmp_path / "runs" / "job" / "model" / "model.safetensors").is_file()
    _require_tracked(tmp_path / "runs")
