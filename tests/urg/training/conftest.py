"""A small prepared set and one Ray for the tests that train."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.ports import free_ports
from tests.preparing import prepare_without_ray
from urg.config import TrainConfig
from urg.training.notices import UNTIL_STOPPED
from urg.training.state import IDENTITY, Job, Outcome, fencing_token
from urg.training.task import Task

SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two rows of the sample to train on, a number that no batch size here divides; prepared without Ray."""
    from data_pipeline.config import PrepareConfig, SampleSize

    root = tmp_path_factory.mktemp("data")
    return prepare_without_ray(
        PrepareConfig(output=str(root), tokenizer="train", vocab_size=600, sample=SampleSize(22, 6, 6, 0))
    )


@pytest.fixture(scope="module")
def configure(shards: Path) -> Callable[..., TrainConfig]:
    """configure(storage, name, a__b=c, …): a tiny run of six steps on `shards`, through the real command line."""
    from data_pipeline.cli import parse_config

    def make(storage: Path, name: str = "run", **overrides: Any) -> TrainConfig:
        values = {
            "name": name,
            "storage": storage,
            "steps": 6,
            "data.shards": shards,
            "data.label": "rougeL",
            "model.chunk_tokens": 512,
            "batch.micro": 2,
            "eval.every": 3,
            "eval.rows": 3,
            "eval.metric": "label",
            "eval.max_new_tokens": 4,
            "engine.dtype": "fp32",
            "tracking.uri": "off",
            "tracking.log_every": 1,
            "optim.lr": 0.01,
        }
        values |= {f"model.scratch.{key}": value for key, value in SHAPE.items()}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        arguments = [
            part
            for key, value in values.items()
            for part in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))
        ]
        return parse_config(TrainConfig, argv=arguments)

    return make


@pytest.fixture
def make_config(configure: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """make_config(name, a__b=c, …): as `configure`, in a folder of the test's own."""
    return partial(configure, tmp_path / "runs")


@pytest.fixture(scope="session")
def run_workers() -> Iterator[Callable[..., list[Outcome | None]]]:
    """run_workers(config, world, limit, wrap): train in `world` processes without Ray; each one's outcome, None where
    it died. As Ray does, all are killed where one dies. limit: bytes that a worker may write to one file. wrap: what
    each worker makes of its task, by name (tampered_task.py)."""
    workers: list[subprocess.Popen[str]] = []

    def end() -> None:
        for worker in workers:
            worker.kill()
            worker.wait()

    def run(
        config: TrainConfig, world: int = 2, limit: int | None = None, wrap: Callable[[Task], Task] | None = None
    ) -> list[Outcome | None]:
        folder = Path(config.storage) / config.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNTIL_STOPPED).touch()
        written_by_a_driver = (folder / IDENTITY).exists()
        if not written_by_a_driver:
            (folder / IDENTITY).write_text("{}")
        token = str(fencing_token(folder))
        resume_from = None if config.resume in ("auto", "never") else Path(config.resume)
        (folder / "job.pickle").write_bytes(
            pickle.dumps((Job(config, folder, str(config.tracking.uri), resume_from, {}, token), wrap))
        )
        (port,) = free_ports(1)
        limited = ["prlimit", f"--fsize={limit}"] if limit else []
        command = [*limited, sys.executable, str(Path(__file__).with_name("worker_without_ray.py"))]
        command += [str(folder / "job.pickle"), str(world), str(port)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        workers[:] = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(world)
        ]
        while not any(worker.poll() for worker in workers) and any(worker.poll() is None for worker in workers):
            time.sleep(0.1)
        end()
        if not written_by_a_driver:
            (folder / IDENTITY).unlink()
        outputs = [worker.communicate()[0].splitlines() for worker in workers]
        return [
            Outcome(**json.loads(lines[-1])) if worker.returncode == 0 else None
            for worker, lines in zip(workers, outputs, strict=True)
        ]

    yield run
    end()
