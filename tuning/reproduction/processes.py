"""A step's process: on this machine, or on a node of the cluster with a GPU. It ends with the reproduction.

Where a reproduction is killed, its steps are told to end (SIGTERM: a training writes a checkpoint first), and the same
command waits for those that have not ended yet: two processes never write into one folder.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

# Becomes the command when it has asked the kernel for SIGTERM at its parent's end (Linux; elsewhere the lock alone
# tells). argv: the parent's id, and what follows `python -m`.
_BOUND = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the reproduction has ended")
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""
_OF_THE_NODE = ("CUDA_", "NVIDIA_", "LD_", "RAY_")
"""What a process on another node must not be told by this one, where that node says something itself."""


@contextmanager
def held(root: Path, step: str) -> Iterator[int]:
    """Hold a step's lock, which its process inherits: the file that is locked. Waits while a process of an earlier
    reproduction, killed since, is still at it."""
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / step).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{step}: waiting for the process of an earlier session", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield lock.fileno()


def run_here(command: Sequence[str], log: Path, environment: Mapping[str, str], lock: int | None = None) -> int:
    """Run `python -m COMMAND` until its end, its output in a log; the exit code."""
    bound = [sys.executable, "-c", _BOUND, str(os.getpid()), *command]
    inherited = () if lock is None else (lock,)
    with log.open("w", encoding="utf-8") as out:
        return subprocess.run(
            bound, stdout=out, stderr=subprocess.STDOUT, env=dict(environment), pass_fds=inherited
        ).returncode


def session(needed: bool) -> AbstractContextManager[None]:
    """The cluster, joined for `run_where_a_gpu_is`, where there is one."""
    from data_pipeline.ray_session import on_cluster, ray_session

    return ray_session() if needed and on_cluster() else nullcontext()


def run_where_a_gpu_is(command: Sequence[str], log: Path, environment: Mapping[str, str], lock: int) -> int:
    """The same as a Ray task that holds a GPU. A task whose node is lost is begun again on another, and the command
    goes on from what it has kept. It ends when this process does: Ray ends the tasks of a driver that is gone."""
    import ray

    task = ray.remote(num_cpus=1, num_gpus=1)(_run_there)
    code: int = ray.get(task.remote(tuple(command), str(log), dict(environment), os.getcwd()))
    return code


def _run_there(command: tuple[str, ...], log: str, environment: dict[str, str], folder: str) -> int:
    """On that node: in the driver's folder where it is there too, in the job's own copy of the code otherwise."""
    own = {key: value for key, value in os.environ.items() if key.startswith(_OF_THE_NODE)}
    if Path(folder).is_dir():
        os.chdir(folder)
    kept = {key: value for key, value in environment.items() if key not in ("PATH", "HOSTNAME", "HOME")}
    return run_here(command, Path(log), dict(os.environ) | kept | own)
