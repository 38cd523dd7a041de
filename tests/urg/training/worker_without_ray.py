"""One worker of a training run in a process of its own, without Ray: a tenth of the time that Ray takes to start.

    python worker_without_ray.py JOB WORLD PORT RANK     JOB: a pickled Job, and what to make of its task, or None

All is real but for `ray.train`, which is asked for the rank and told of checkpoints. Prints the outcome as JSON.
"""

import dataclasses
import json
import os
import pickle
import sys
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import ray.train
import torch.distributed as dist


def main(file: str, world: int, port: int, rank: int) -> None:
    from urg.training import loop
    from urg.training.notices import heed_sigterm

    with open(file, "rb") as opened:
        job, wrap = pickle.load(opened)
    build_task = loop.build_task
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(minutes=5))
    heed_sigterm()
    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: world)
    with (
        mock.patch.object(ray.train, "get_context", return_value=context),
        mock.patch.object(ray.train, "get_preemption_info", return_value=None),
        mock.patch.object(ray.train, "report"),
        mock.patch.object(loop, "build_task", lambda *given: wrap(build_task(*given)) if wrap else build_task(*given)),
    ):
        outcome = loop.train_worker({"job": job})
    print(json.dumps(dataclasses.asdict(outcome)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
