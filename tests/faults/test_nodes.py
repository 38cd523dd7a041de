"""A training over several nodes: one dies, one is cut off, the head is started anew. The weights show nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.local_cluster import LocalCluster
from tests.faults.training import (
    NODES,
    PACE_S,
    ROOT,
    STARTS_NODES,
    Run,
    busy,
    require_same,
    training_workers,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(900), STARTS_NODES]

LOST_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "15"}
"""The environment of nodes that end when their head has been away for so long; else they wait for a minute."""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2")
def test_a_node_dies_and_another_is_cut_off(make_run: Callable[..., Run], undisturbed: dict[str, torch.Tensor]) -> None:
    """Four nodes, so that two are left, which have room for both workers; a checkpoint every three steps, for Ray Train
    takes one a second."""
    with LocalCluster(4, isolate=True, environment=NODES, start_timeout=300) as cluster:
        run = make_run("nodes", cluster.environment(), checkpoint_every=3)
        run.start()
        run.wait(lambda: len(run.checkpoints()) >= 2)
        with run.resumed():
            cluster.kill(busy(cluster))
        with run.resumed():
            lost = busy(cluster)
            cluster.cut_off(lost)
            assert training_workers(lost.process.pid)  # they run on, and nobody hears of it
        cluster.reconnect(lost)
        run.finish()
        require_same(run.weights(), undisturbed)
        assert sorted(set(run.steps())) == list(range(1, 61))


def test_the_head_is_started_anew_and_submitting_again_resumes(
    make_run: Callable[..., Run], undisturbed: dict[str, torch.Tensor]
) -> None:
    """The head forgets its jobs: following says so, nothing of the old attempt trains on, the same command resumes."""
    from ray.job_submission import JobSubmissionClient

    with LocalCluster(2, environment=NODES | LOST_HEAD, start_timeout=300) as cluster:
        run = make_run("head", cluster.environment())
        submit = [sys.executable, "-m", "cluster.submit", "train", "--working-dir", str(ROOT)]
        submit += ["--env", f"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S={PACE_S}"]
        run.command = [*submit, "--", *run.arguments]
        run.start()
        run.wait(lambda: len(run.checkpoints()) >= 4)
        (old,) = cluster.workers
        cluster.restart_head()
        assert "no longer knows job train-head: its head was restarted; submit again" in run.ends(2)
        wait_until(lambda: old.process.poll() is not None, "the node of the old head ends", timeout=180)
        wait_until(lambda: training_workers() == [], "the old attempt's workers end")
        cluster.add_node()
        environment = cluster.environment()
        headers = {"Authorization": f"Bearer {Path(environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
        assert JobSubmissionClient(cluster.dashboard, headers=headers).list_jobs() == []
        before = run.steps()
        run.whole()
        assert run.log().count("resuming from") == 1
        assert len(run.steps()) < len(before) + 60
        require_same(run.weights(), undisturbed)
        status = [sys.executable, "-m", "ray.scripts.scripts", "job", "status", "train-head"]
        told = subprocess.run(status, env=run.environment, capture_output=True, text=True, timeout=120)
        assert "succeeded" in told.stdout + told.stderr
