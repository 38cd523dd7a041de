"""Answers outlive the process that made them: a run is killed in its second system, and the rerun repeats no first."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from tests.urg.made_up import random_rows
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.answer_store import AnswerStore
from urg.evaluation.answering import answer
from urg.systems import SYSTEMS
from urg.systems.longest import Lengths
from urg.systems.protocol import Ranked

folder, wait = Path(sys.argv[1]), float(sys.argv[2])

class Slow(Lengths):
    def __init__(self, name, wait):
        self.name, self.wait = name, wait
    def rank(self, rows):
        with (folder / "log").open("a") as log:
            log.write(self.name + "\\n")
        time.sleep(self.wait)
        return super().rank(rows)

SYSTEMS.clear()
SYSTEMS["first"] = lambda setup: Ranked("first", "ranker", Slow("first", 0))
SYSTEMS["second"] = lambda setup: Ranked("second", "ranker", Slow("second", wait))
rows, config = random_rows(5), EvaluateConfig(shards="x", output=str(folder))
systems, _ = answer(rows, "quality", config, AnswerStore(folder, config, rows, "quality"))
print(*(system.name for system in systems if system.kind == "ranker"))
"""


def start(folder: Path, wait: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_killed_run_repeats_no_finished_system(tmp_path: Path) -> None:
    killed = start(tmp_path, 1000)
    log = tmp_path / "log"
    try:
        deadline = time.monotonic() + 240
        while not (log.exists() and "second" in log.read_text()):
            assert time.monotonic() < deadline, "the second system never began"
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=100)
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["first.parquet"]
    again = start(tmp_path, 0)
    printed, _ = again.communicate(timeout=240)
    assert again.returncode == 0
    assert log.read_text().split() == ["first", "second", "second"]
    assert "kept from an earlier run: first" in printed
    assert printed.splitlines()[-1] == "first second"
