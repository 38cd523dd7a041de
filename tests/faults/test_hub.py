"""The Hugging Face hub does not answer: what is in the cache works, and what is not there is one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.training import ROOT, Run

pytestmark = pytest.mark.faults


def _without_hub(cache: Path) -> dict[str, str]:
    """Nothing listens on port 9 of loopback."""
    return {"HF_HOME": str(cache), "HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("urg.train", ["--model.base", "org/absent", "--eval.metric", "rougeL"]),
        ("data_pipeline.prepare", ["--tokenizer", "org/absent", "--sample.train", "1", "--sample.dev", "1"]),
    ],
)
def test_what_is_not_cached_is_one_line(module: str, options: list[str], shards: Path, tmp_path: Path) -> None:
    if module == "urg.train":
        options = [*options, "--data.shards", str(shards), "--data.label", "rougeL", "--storage", str(tmp_path)]
    else:
        options = [*options, "--output", str(tmp_path / "data")]
    command = [sys.executable, "-m", module, *options]
    environment = os.environ | _without_hub(tmp_path) | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "org/absent" in line
    assert "hub cannot be reached" in line
    assert "give a local folder" in line


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(300)
def test_a_cached_model_trains(calm: Run, make_run: Callable[..., Run], tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(calm.folder / "model", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    run = make_run("cached", _without_hub(tmp_path), model__base="org/tiny", steps=1, engine__workers=1)
    run.whole()
    assert run.steps() == [1]
