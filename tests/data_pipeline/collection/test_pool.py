"""On real Ray actors that really die."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.collection import pool as module
from data_pipeline.collection.pool import answers_from_pool
from data_pipeline.errors import UserError
from data_pipeline.plan import Actors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("ray_started")]


def reasons(
    batches: list[list[int]], work: Callable[[Mapping[str, Any]], dict[str, Any]], **pool: Any
) -> dict[int, str]:
    """row → its answer, or the reason why there is none; in the order in which they came."""
    actors, came = Actors(**{"count": 2, "cpus": 1.0, **pool}), dict[int, str]()
    for batch, answers in answers_from_pool(batches, lambda batch: {"rows": list(batch)}, work, actors, "m"):
        for row, answer in zip(batch, answers, strict=True):
            assert row not in came
            came[row] = answer if isinstance(answer, str) else answer["reason"]
    return came


@pytest.mark.faults
def test_a_prompt_that_kills_its_actor_is_the_only_one_without_an_answer():
    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        if 1 in task["rows"]:
            os._exit(1)
        return {"answers": [str(row) for row in task["rows"]]}

    came = reasons([[0, 1, 2, 3], [4, 5], [6, 7], [8]], work)
    assert came == {row: str(row) for row in range(9)} | {1: "actor_died"}


def test_an_answer_does_not_wait_for_those_before_it(tmp_path: Path):
    told = tmp_path / "told"

    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        while task["rows"] == [0] and not told.exists():
            time.sleep(0.01)
        return {"answers": [""] * len(task["rows"])}

    came = []
    batches, actors = [[0], [1], [2], [3]], Actors(2)
    for batch, _ in answers_from_pool(batches, lambda batch: {"rows": list(batch)}, work, actors, "m"):
        came += batch
        if len(came) == 3:
            told.touch()
    assert came == [1, 2, 3, 0]


def test_when_all_die_it_ends_and_what_is_left_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "DEATHS_IN_A_ROW", 2)

    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        (tmp_path / f"{os.getpid()}").touch()
        os._exit(1)

    came = reasons([[row] for row in range(20)], work)
    assert sorted(came) == list(range(20))
    assert list(came.values()) == ["actor_died"] * 4 + ["not_asked"] * 16
    assert len(list(tmp_path.iterdir())) <= 4 + 1  # one more may have begun


@pytest.mark.faults
def test_after_a_death_the_shortest_are_next_so_that_long_ones_that_kill_keep_nothing_back(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(module, "DEATHS_IN_A_ROW", 1)

    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        if min(task["rows"]) < 6:  # the rows are in the order of length, the longest first
            os._exit(1)
        return {"answers": [str(row) for row in task["rows"]]}

    came = reasons([[row, row + 1] for row in range(0, 12, 2)], work, count=1)
    assert {row for row, answer in came.items() if answer == str(row)} == set(range(6, 12))


def test_more_actors_than_there_is_room_for_do_not_wait_for_each_other():
    came = reasons([[row] for row in range(8)], lambda task: {"answers": ["ok"]}, count=8, cpus=2.0)
    assert came == dict.fromkeys(range(8), "ok")


def test_an_error_that_the_user_can_mend_is_raised_as_itself():
    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        raise UserError("prompts.jsonl was changed")

    with pytest.raises(UserError, match=r"^prompts\.jsonl was changed$"):
        reasons([[0]], work)
