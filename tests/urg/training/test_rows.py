"""Which rows the workers of a run really take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.urg.training.tampered_task import RowsRecorded
from urg.config import TrainConfig
from urg.training.state import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]

ROWS = 22  # of the shards; global batches of 4 do not divide them
STEPS_PER_EPOCH = 6


def _taken(folder: Path) -> dict[int, list[int]]:
    """The rows by step, over both workers; of a step that was begun by several processes, what the last one took."""
    last: dict[tuple[int, str], tuple[int, list[int]]] = {}
    for record in folder.glob("rank-*.jsonl"):
        for line in map(json.loads, record.read_text().splitlines()):
            process, rows = last.get((line["step"], record.name), (line["process"], []))
            kept = rows if process == line["process"] else []
            last[line["step"], record.name] = (line["process"], kept + line["rows"])
    taken: dict[int, list[int]] = {}
    for (step, _), (_, rows) in last.items():
        taken[step] = taken.get(step, []) + rows
    return taken


def test_each_row_is_used_once_an_epoch_though_a_worker_is_killed_in_the_middle(
    make_config: Callable[..., TrainConfig], run_workers: Callable[..., list[Outcome | None]], tmp_path: Path
) -> None:
    """SIGKILL in step 11, the fifth of the second epoch; what goes on from step 8 takes what steps 9 and 10 had."""
    steps = 2 * STEPS_PER_EPOCH + 2
    config = make_config(engine__workers=2, engine__dtype="bf16", steps=steps, eval__every=steps, checkpoint_every=4)
    wrap = partial(RowsRecorded, folder=tmp_path, dies_at=11)
    assert run_workers(config, wrap=wrap) == [None, None]
    before = _taken(tmp_path)
    assert {9, 10} <= before.keys()
    assert run_workers(config, wrap=wrap) == [Outcome()] * 2
    log = (Path(config.storage) / config.name / "train.log").read_text()
    assert "at step 8, written by 2 workers" in log
    taken = _taken(tmp_path)
    assert sorted(taken) == list(range(1, steps + 1))
    assert [sorted(taken[step]) for step in (9, 10)] == [sorted(before[step]) for step in (9, 10)]
    for epoch in range(2):
        of_epoch = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        assert Counter(row for step in of_epoch for row in taken[step]) == Counter(range(ROWS))
    assert len({row for step in range(2 * STEPS_PER_EPOCH + 1, steps + 1) for row in taken[step]}) == 8
