"""`ray job submit --working-dir . -- python -m urg.train …` on a real `ray start --head`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from urg.training.state import RESUMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A Ray head alone, on loopback, that asks for a token."""
    with LocalCluster(1, cpus=3) as started:
        yield started


def _submit(cluster: LocalCluster, entry: list[str], cwd: Path, code: int = 0) -> str:
    """Submit, wait for the end and require the exit code; what was printed. A head that is up may still lack the agent
    that starts jobs."""
    command = [RAY, "job", "submit", f"--address={cluster.dashboard}", "--working-dir", str(ROOT), "--", *entry]
    own = os.environ | cluster.environment()
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=own)
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(2)
    said = f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}\nthe head: {cluster.head.log.read_text()[-3000:]}"
    assert done.returncode == code, said
    return done.stdout


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


def test_a_submitted_job_prepares_and_trains(cluster: LocalCluster, tmp_path: Path) -> None:
    data = tmp_path / "data"
    sizes = ["--sample.train=16", "--sample.dev=4", "--sample.test=4"]
    _submit(cluster, ["python", "-m", "data_pipeline.prepare", *sizes, f"--output={data}"], tmp_path)
    shape = [f"--model.scratch.{key}=16" for key in ("d_model", "d_ff")] + ["--model.scratch.d_kv=4"]
    options = ["--name=job", f"--storage={tmp_path / 'runs'}", "--data.label=rougeL", "--eval.metric=rougeL"]
    options += ["--steps=2", "--eval.max_new_tokens=4", "--eval.rows=2", "--engine.workers=2", "--batch.micro=2"]
    said = _submit(cluster, ["python", "-m", "urg.train", f"--data.shards={data}", *options, *shape], tmp_path)
    assert "step 2/2" in said
    assert (tmp_path / "runs" / "job" / "model" / "model.safetensors").is_file()
    _require_tracked(tmp_path / "runs")
    options[1] = "--storage=runs"
    said = _submit(cluster, ["python", "-m", "urg.train", f"--data.shards={data}", *options, *shape], tmp_path, code=1)
    assert "runs/job is in the working directory of this job, which Ray deletes: give an absolute path" in said


def test_a_run_that_waits_for_nodes_says_so_and_ends_when_it_is_told(
    cluster: LocalCluster, shards: Path, tmp_path: Path
) -> None:
    options = [f"--data.shards={shards}", f"--storage={tmp_path}", "--data.label=rougeL", "--eval.metric=label"]
    options += ["--name=waits", "--tracking.uri=off", "--engine.workers=8"]
    command = [sys.executable, "-m", "urg.train", *options]
    own = os.environ | cluster.environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if "the cluster has 3 CPUs of the 8 that 8 workers need: the run waits for nodes" in line:
                break
        time.sleep(5)  # by then Ray waits for them
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == RESUMES, said
    assert "had no worker yet; the same command goes on" in said
