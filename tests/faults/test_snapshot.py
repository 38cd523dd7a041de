"""Ray Train's own snapshot of a run is damaged while nothing runs: the next start meets it, and goes on all the
same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.damage import SNAPSHOT, flip
from tests.faults.training import Run, require_same
from urg.training.state import RESUMES

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]

STEPS = 24
"""With a checkpoint at each, of which Ray Train takes one a second: the run is hurt twice before its end."""


def _cut_short(snapshot: Path) -> None:
    os.truncate(snapshot, snapshot.stat().st_size // 2)


def _flip_a_bit_of_a_key(snapshot: Path) -> None:
    flip(snapshot, 8 * snapshot.read_bytes().index(b"checkpoint_results"))


def test_a_start_that_meets_a_damaged_snapshot_goes_on_from_the_checkpoint(
    make_run: Callable[..., Run], train_calmly: Callable[[Run], None]
) -> None:
    """Ray itself starts no run over either of them. The driver has ended, so that nothing repairs the file before."""
    calm, run = make_run("calm", steps=STEPS), make_run("hurt", steps=STEPS)
    train_calmly(calm)
    snapshot = run.folder / SNAPSHOT
    run.start()
    for damage in (_cut_short, _flip_a_bit_of_a_key):
        run.wait(lambda: snapshot.exists() and len(run.checkpoints()) >= 2)
        assert run.process
        os.kill(run.process.pid, signal.SIGTERM)
        run.ends(RESUMES)
        whole = snapshot.read_bytes()
        assert "checkpoint_results" in json.loads(whole)
        damage(snapshot)
        assert snapshot.read_bytes() != whole
        with run.resumed():
            run.start()
    run.finish()
    assert "checkpoint_results" in json.loads(snapshot.read_bytes())
    assert run.log().count("resuming from") == 2
    assert "passing over" not in run.log()
    assert run.steps() == list(range(1, STEPS + 1))
    require_same(run.weights(), calm.weights())
