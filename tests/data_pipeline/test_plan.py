from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import plan
from data_pipeline.cleaning import Rules
from data_pipeline.errors import UserError
from data_pipeline.labelling.scoring import ShardScorer
from data_pipeline.lines import byte_ranges, read_lines
from data_pipeline.quality.metrics import METRICS, Scorer
from data_pipeline.quality.model_folder import MetricModel

OWN = {"num_cpus", "num_gpus", "compute", "fn_constructor_args"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray Data is asked for by a plan, which ends there with an `InterruptedError`."""
    import ray.data
    from ray.data.dataset import _warn_on_ray_remote_args

    asked = dict[str, Any]()

    class Blocks:
        def map(self, *_: object, **settings: Any) -> Blocks:
            asked.update(settings)
            # an error unless the plan expects it
            _warn_on_ray_remote_args({name: value for name, value in settings.items() if name not in OWN})
            raise InterruptedError

    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: Blocks())
    monkeypatch.setenv("RAY_ADDRESS", "a cluster, which may yet grow")
    return asked


@pytest.mark.parametrize("address", [None, "", "local", "head:6379"])
def test_an_actor_for_which_this_machine_has_no_room_is_refused_but_on_a_cluster(
    address: str | None, monkeypatch: pytest.MonkeyPatch
):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with nullcontext() if address == "head:6379" else pytest.raises(UserError, match="asks for 1 GPU"):
        plan.require_room(plan.Actors(1, gpus=1))


def test_a_pool_whose_actors_keep_dying_comes_to_an_end(asked: dict[str, Any]):
    import ray.data
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    with pytest.raises(InterruptedError):
        list(plan.on_actors([{}], dict, plan.Actors(1)))
    others = {name: value for name, value in asked.items() if name not in OWN}
    actor = ActorPoolMapOperator._apply_default_remote_args(others, ray.data.DataContext.get_current())
    assert (actor["max_restarts"], actor["max_task_retries"]) == (3, 3)


def test_a_pool_asks_for_its_actors_their_cores_and_their_share_of_a_gpu(asked: dict[str, Any]):
    with pytest.raises(InterruptedError):
        list(plan.on_actors([{}, {}], dict, plan.Actors(2, cpus=0.5, gpus=0.25)))
    assert (asked["num_cpus"], asked["num_gpus"]) == (0.5, 0.25)
    assert (asked["compute"].min_size, asked["compute"].max_size) == (2, 2)


SHARING = """
import json, os, sys, time
from pathlib import Path
import ray
from data_pipeline.plan import Actors, on_actors

def work(task):
    folder, end = Path(task["folder"]), time.monotonic() + 60
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:  # until the other actor is at work too
        time.sleep(0.05)
    return {"actors": len(list(folder.iterdir())), "gpus": [int(gpu) for gpu in ray.get_gpu_ids()]}

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
print(json.dumps(list(on_actors([{"folder": sys.argv[1]}] * 16, work, Actors(2, cpus=0.5, gpus=0.5)))))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_actors_with_half_a_gpu_each_work_at_once_on_the_one_there_is(tmp_path: Path):
    """Ray counts GPUs by what it is told: no hardware is needed."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", SHARING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{"actors": 2, "gpus": [0]}] * 16


class NotedScorer:
    """A `ShardScorer` whose metric notes each loading of its model, in the file that is named as the model."""

    def __init__(self, scorer: ShardScorer) -> None:
        self.scorer = scorer

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        METRICS["reward"] = replace(METRICS["reward"], load=_noted)
        return self.scorer(task)


def _noted(model: MetricModel) -> Scorer:
    with open(model.name, "a") as file:
        file.write(f"{os.getpid()}\n")
    return lambda items: {"reward": [float(len(item.text)) for item in items]}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_actor_loads_its_model_once_for_all_its_shards(
    ray_started: None, make_rows: Callable[..., Any], write_rows: Callable[..., Path], tmp_path: Path
):
    path, notes = write_rows("a.jsonl", make_rows(6)), tmp_path / "notes"
    (whole,) = byte_ranges([path], 1 << 30)
    tasks = [
        {"name": f"shard-{line.number}", "files": [0], "offsets": [line.offset], "sizes": [len(line.raw)]}
        for line in read_lines(whole)
    ]
    models = {"reward": MetricModel(str(notes))}
    scorer = ShardScorer([str(path)], Rules(), {"reward": ["reward"]}, models, False, str(tmp_path))
    reports = list(plan.on_actors(tasks, NotedScorer(scorer), plan.Actors(1, cpus=0.5)))
    assert [report["counts"]["reward"]["computed"] for report in reports] == [3] * 6
    (actor,) = notes.read_text().splitlines()
    assert int(actor) != os.getpid()
