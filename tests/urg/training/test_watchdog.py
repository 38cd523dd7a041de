"""The watchdog ends a process that waits for ever, says so, and leaves one that moves alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

WAITS = """
    import time
    from urg.training.watchdog import watching

    with watching(0.4, lambda reason: print(reason, flush=True)) as watchdog:
        for _ in range(6):
            time.sleep(0.2)
            watchdog.moved()
        print("moved", flush=True)
        {then}
    time.sleep(1)
    print("ended", flush=True)
"""


def _run(then: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(WAITS).format(then=then)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_process_that_waits_for_ever_is_ended_and_says_where_it_stood() -> None:
    started = time.monotonic()
    done = _run("time.sleep(50)")
    assert time.monotonic() - started < 40
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["moved", "nothing has moved for 0.4 s (engine.timeout_s)"]
    assert 'File "<string>", line' in done.stderr


def test_a_block_that_has_ended_is_not_watched() -> None:
    assert _run("pass").stdout.splitlines() == ["moved", "ended"]
