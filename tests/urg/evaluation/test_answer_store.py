"""What a kept answer depends on: the system's own folders and settings; and calls that failed are made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards import TokenizedExample
from tests.urg.made_up import random_rows
from urg.evaluation import answer_store
from urg.evaluation.answer_store import VERSIONS, AnswerStore
from urg.evaluation.answering import answer
from urg.evaluation.config import EvaluateConfig
from urg.systems import NEEDS, SYSTEMS, Answer

ROWS = random_rows(6)


def changed(before: EvaluateConfig, after: EvaluateConfig) -> set[str]:
    """The systems whose answers are others."""
    old, new = (AnswerStore(Path("out"), config, ROWS, "quality") for config in (before, after))
    return {name for name in SYSTEMS if old.key(name) != new.key(name)}


def test_a_systems_answers_depend_on_its_own_folders_and_settings_alone(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    config = EvaluateConfig(shards="x", output="y", folders={"simcls": str(tmp_path)})
    fusers = {"simcls_gen", "summareranker_gen", "llm_blender", "urg", "urg_random_k"}
    ours = {"urg", "urg_rank", "urg_random_k"}
    for changes, expected in (
        ({"folders": {**config.folders, "mlm_scoring": "some/bert"}}, {"mlm_scoring"}),
        ({"folders": {**config.folders, "gen_fuser": "x"}}, fusers - ours),
        ({"folders": {}}, {"simcls", "simcls_gen"}),
        ({"model": "a-model"}, ours),
        ({"num_beams": 2}, fusers),
        ({"seed": 1}, {"random", "judge_rank", "judge_fuse", "urg_random_k"}),
        ({"dtype": "bf16"}, set(SYSTEMS)),
        ({"rows": 3, "batch_size": 4, "cases": 0}, set()),
    ):
        assert changed(config, replace(config, **changes)) == expected, changes  # type: ignore[arg-type]
    before = AnswerStore(Path("out"), config, ROWS, "quality")
    keys = {name: before.key(name) for name in ("simcls", "pair_ranker")}
    (tmp_path / "weights").write_bytes(b"22")  # trained again
    after = AnswerStore(Path("out"), config, ROWS, "quality")
    assert [name for name, key in keys.items() if after.key(name) != key] == ["simcls"]


def test_a_system_that_does_not_say_depends_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(NEEDS, "longest")
    config = EvaluateConfig(shards="x", output="y")
    assert "longest" in changed(config, replace(config, num_beams=2))
    first, second = (AnswerStore(Path("o"), replace(config, num_beams=n), ROWS, "q").key_of_all() for n in (1, 2))
    assert first != second


def test_a_models_version_is_in_the_keys_of_what_it_has_a_part_in_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert answer_store.FORMAT == 3  # raised, every paid answer of every user is asked for again
    named = {name: f"some/{name}" for name in ("reward_model", "gen_fuser", "simcls", "pair_ranker", "judge")}
    config = EvaluateConfig(shards="x", output="y", folders=named)
    store = AnswerStore(Path("out"), config, ROWS, "quality")
    now = {name: store.key(name) for name in SYSTEMS}
    fused = {"simcls_gen", "summareranker_gen", "llm_blender"}
    for versions, expected in (
        ({}, {"reward_model", *fused}),
        ({**VERSIONS, "judge": 2}, {"judge_rank", "judge_fuse"}),
    ):
        monkeypatch.setattr(answer_store, "VERSIONS", versions)  # {}: as older versions made their keys
        assert {name for name in SYSTEMS if store.key(name) != now[name]} == expected
    without = AnswerStore(Path("out"), replace(config, folders={"judge": "x"}), ROWS, "quality")
    monkeypatch.setattr(answer_store, "VERSIONS", {})
    old = without.key_of_all()
    monkeypatch.setattr(answer_store, "VERSIONS", VERSIONS)
    assert without.key_of_all() == old


class Flaky:
    """Answers the rows that are not in `fails`."""

    name, kind = "judge_fuse", "fuser"

    def __init__(self) -> None:
        self.fails: set[str] = set()
        self.asked: list[list[str]] = []

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        self.asked.append([made.id for made in rows])
        if all(made.id in self.fails for made in rows):
            raise UserError("gpt gave no answer that can be used")
        return [None if made.id in self.fails else Answer(f"about {made.id}") for made in rows]


def test_calls_that_failed_are_made_again_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Flaky()
    monkeypatch.setitem(SYSTEMS, "judge_fuse", lambda setup: judge)
    config = EvaluateConfig(shards="x", output=str(tmp_path), systems="judge_fuse")

    def texts() -> list[str | None]:
        (system,), _ = answer(ROWS, "quality", config, AnswerStore(tmp_path, config, ROWS, "quality"))
        return [found and found.text for found in system.answer(ROWS)]

    judge.fails = {"row/1", "row/4"}
    assert texts().count(None) == 2
    assert texts().count(None) == 2  # both fail again: said, and what there is stays
    assert "judge_fuse still has no answer to 2 rows: gpt gave no answer" in capsys.readouterr().out
    judge.fails = {"row/4"}
    assert texts().count(None) == 1
    judge.fails = set()
    assert texts() == texts() == [f"about {made.id}" for made in ROWS]
    everything: list[Any] = [made.id for made in ROWS]
    assert judge.asked == [everything, ["row/1", "row/4"], ["row/1", "row/4"], ["row/4"]]
