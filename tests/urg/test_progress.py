"""What a person sees of a run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from urg.progress import RunLog, follow


def test_only_new_lines_are_shown_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, finished = tmp_path / "train.log", threading.Event()
    log = RunLog(path)
    log.line("step 1/3  from an earlier attempt")
    follower = threading.Thread(target=follow, args=(path, finished, 0.01))
    follower.start()
    finished.wait(0.05)
    for step in (2, 3):
        log.line(f"step {step}/3  loss 1.0")
    finished.set()
    follower.join(timeout=10)
    assert not follower.is_alive()
    assert capsys.readouterr().out == "step 2/3  loss 1.0\nstep 3/3  loss 1.0\n"


def test_a_log_that_never_comes_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = threading.Event()
    finished.set()
    follow(tmp_path / "none", finished)
    assert capsys.readouterr().out == ""


def test_a_line_that_finds_no_room_ends_nothing() -> None:
    RunLog(Path("/dev/full")).line("step 1/9")
