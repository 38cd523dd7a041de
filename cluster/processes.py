"""Ending the processes of a node by their ids: those of its session, and what they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence

GRACE_SECONDS = 5.0


def kill(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL to every process of the session that `leader` leads; returns when they are gone."""
    for _ in range(100):
        members = _members([leader.pid])
        if leader.poll() is not None and not members:
            return
        for pid in members:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.05)


def end(leaders: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to the leaders, time to end in order, and SIGKILL to what is left of their sessions."""
    left = _members([leader.pid for leader in leaders])
    for leader in leaders:
        if leader.poll() is None:
            _signal(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for leader in leaders:
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(timeout=max(0.1, deadline - time.monotonic()))
    for leader in leaders:
        kill(leader)
    for pid in left:  # a job's driver has a session of its own
        _signal(pid, signal.SIGKILL)


def _members(sessions: Sequence[int]) -> set[int]:
    """The living processes of these sessions, and all that descend from them."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        except (OSError, psutil.Error):  # it has ended meanwhile
            continue
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
