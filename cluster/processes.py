"""Ending the processes of a node: those of its session, and what they started.

A process is remembered as psutil's object, which knows when it began: an id that another process has got meanwhile is
never signalled.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 5.0


def kill(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL to every process of the session that `leader` leads; returns when they are gone."""
    for _ in range(100):
        members = _members([leader])
        if leader.poll() is not None and not members:
            return
        _kill(members)
        time.sleep(0.05)


def end(leaders: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to the leaders, time to end in order, and SIGKILL to what is left of their sessions."""
    left = _members(leaders)
    for leader in leaders:
        leader.terminate()  # which leaves one that has ended alone
    deadline = time.monotonic() + GRACE_SECONDS
    for leader in leaders:
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(timeout=max(0.1, deadline - time.monotonic()))
    for leader in leaders:
        kill(leader)
    _kill(left)  # a job's driver has a session of its own


def _members(leaders: Sequence[subprocess.Popen[bytes]]) -> set[psutil.Process]:
    """The living processes of the sessions of these leaders, and all that descend from them."""
    import psutil

    sessions = {leader.pid for leader in leaders if not _is_reused(leader)}
    found = set()
    for pid in psutil.pids():
        try:
            if os.getsid(pid) not in sessions:
                continue
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found |= {process, *process.children(recursive=True)}
        except (OSError, psutil.Error):  # it has ended meanwhile
            continue
    return found


def _is_reused(leader: subprocess.Popen[bytes]) -> bool:
    """Whether the leader's id is another process's by now. The system gives an id away when the leader has been waited
    for and nothing of its session is left."""
    import psutil

    return leader.poll() is not None and psutil.pid_exists(leader.pid)


def _kill(processes: set[psutil.Process]) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
