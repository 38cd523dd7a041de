"""Whoever hears of a stop or of a node's end, all workers act after the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cluster.ports import free_ports
from urg.training.notices import LISTENING, UNTIL_STOPPED, sigterm_stops
from urg.training.state import Stopped

WORKER = """
import sys, time
from pathlib import Path
from types import ModuleType, SimpleNamespace
import torch.distributed as dist
from urg.training import notices

run, port, rank, drained = Path(sys.argv[1]), *map(int, sys.argv[2:])
notices.LOOK_EVERY_S = notices.ASK_RAY_EVERY_S = 0.1
info = SimpleNamespace(preempted_node_ids=["a"]) if drained else None
sys.modules["ray"], sys.modules["ray.train"] = ModuleType("ray"), ModuleType("ray.train")  # Ray takes long to import
sys.modules["ray"].train = sys.modules["ray.train"]
sys.modules["ray.train"].get_preemption_info = lambda: info
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
notices.heed_sigterm()
heard = notices.Notices(run, rank, 60)
(run / f"going-{rank}").touch()
for step in range(1, 500):
    time.sleep(0.02 + 0.02 * rank)  # one is slower than the other
    notice = heard.listen()
    if notice:
        print(step, notice.name, flush=True)
    if notice is notices.Notice.STOP:
        break
dist.barrier()
"""


def _heard(run: Path, act: Callable[[list[subprocess.Popen[str]]], object], drained: bool = False) -> list[str]:
    """What both workers heard, after `act` on the two that run; they must agree."""
    (run / UNTIL_STOPPED).touch()
    (port,) = free_ports(1)
    command = [sys.executable, "-c", WORKER, str(run), str(port)]
    workers = [
        subprocess.Popen([*command, str(rank), str(int(drained))], stdout=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        while not ((run / "going-0").exists() and (run / "going-1").exists()):
            assert [worker.poll() for worker in workers] == [None, None]
            time.sleep(0.05)
        act(workers)
        first, second = (worker.communicate(timeout=60)[0].splitlines() for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
    assert first == second
    return first


def test_sigterm_to_one_worker_stops_all_after_the_same_step(tmp_path: Path) -> None:
    (heard,) = _heard(tmp_path, lambda workers: workers[1].send_signal(signal.SIGTERM))
    assert heard.endswith(" STOP")


def test_a_deleted_file_stops_all_and_a_drained_node_is_heard_of_once(tmp_path: Path) -> None:
    def act(workers: list[subprocess.Popen[str]]) -> None:
        time.sleep(0.5)
        (tmp_path / UNTIL_STOPPED).unlink()

    checkpoint, stop = _heard(tmp_path, act, drained=True)
    assert checkpoint.endswith(" CHECKPOINT")
    assert stop.endswith(" STOP")


def test_sigterm_to_the_driver_asks_once_and_then_does_what_it_did_before(tmp_path: Path) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with sigterm_stops(tmp_path):
            assert (tmp_path / UNTIL_STOPPED).exists()
            (tmp_path / LISTENING).touch()
            os.kill(os.getpid(), signal.SIGTERM)
            assert not (tmp_path / UNTIL_STOPPED).exists()
            assert came == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == [signal.SIGTERM]
        with sigterm_stops(tmp_path):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_waits_for_nodes_is_stopped_at_once(tmp_path: Path) -> None:
    def wait() -> None:
        with sigterm_stops(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before, begun = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(Stopped, match="had no worker yet; the same command goes on"):
        wait()
    assert time.monotonic() - begun < 30
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_ray_takes_of_ctrl_c_is_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with sigterm_stops(tmp_path):
        signal.signal(signal.SIGINT, lambda *_: None)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    handlers = []

    def look() -> None:
        with sigterm_stops(tmp_path):
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [before]
    assert (tmp_path / UNTIL_STOPPED).exists()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, for a worker of 512 that need not be there."""
    from torch import distributed

    from urg.training import notices

    monkeypatch.setattr(notices, "_told", threading.Event())
    monkeypatch.setattr(distributed, "new_group", lambda **_: None)
    monkeypatch.setattr(distributed, "all_reduce", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 512)
    return notices


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_worker_looks_at_the_shared_folder(
    rank: int, alone: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "LOOK_EVERY_S", 0.0)
    alone.Notices(Path("/nowhere"), rank, 60)
    assert alone._told.is_set() == (rank == 0)


def test_many_workers_ask_ray_more_seldom(alone: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is a call of every worker to one actor, for which the step waits."""
    now = [100.0]
    monkeypatch.setattr(alone.time, "monotonic", lambda: now[0])
    heard = alone.Notices(Path("/nowhere"), 0, 60)
    asked = []
    for second in range(1, 13):
        now[0] = 100.0 + second
        heard._send()
        asked += [second] if heard._heard.tolist()[1] else []
    assert asked == [6, 12]
