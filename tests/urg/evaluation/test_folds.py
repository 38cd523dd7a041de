"""Cross-validated evaluation: each row is answered once, by the models of its own part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.folds import fold_of, fold_split
from tests.urg.made_up import StubSplit, random_rows, row
from urg.ensemble import Query, Ranking
from urg.evaluation.answer_store import AnswerStore
from urg.evaluation.answering import answer
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.subject import places
from urg.systems.folder import write_system
from urg.systems.protocol import Answer

FOLDS = 3
ROWS = random_rows(30, models=FOLDS + 1)
PART = [fold_of(made.id, FOLDS) for made in ROWS]


@dataclass
class Biased:
    """Puts one candidate first, always; counts the queries."""

    first: int
    writes: bool = False
    asked: int = 0

    def rank_batch(self, queries: list[Query]) -> list[Ranking]:
        self.asked += len(queries)
        scores = [tuple(float(i == self.first) for i in range(len(query.candidates))) for query in queries]
        return [Ranking(s, tuple(sorted(range(len(s)), key=lambda i: -s[i]))) for s in scores]


class Loader:
    """Loads the model of a part: the number in its folder's name is the candidate that it puts first."""

    def __init__(self) -> None:
        self.loaded: dict[str, Biased] = {}

    def __call__(self, config: EvaluateConfig) -> Any:
        model = Biased(int(str(config.model)[-1]))
        self.loaded[str(config.model)] = model
        return model


def answered(folder: Path, loader: Loader, **changes: Any) -> tuple[dict[str, list[Answer | None]], dict[str, str]]:
    asked = {"shards": "x", "output": str(folder), "model": "runs/{fold}", "systems": "random,urg_rank,oracle"}
    config = EvaluateConfig(**(asked | {"folds": FOLDS} | changes))  # type: ignore[arg-type]
    store = AnswerStore(folder, config, ROWS, "quality")
    systems, unavailable = answer(ROWS, "quality", config, store, loader)
    return {system.name: system.answer(ROWS) for system in systems}, unavailable


def test_each_row_is_answered_by_the_model_that_was_not_trained_on_it(tmp_path: Path) -> None:
    loader = Loader()
    found, unavailable = answered(tmp_path, loader)
    assert not unavailable
    assert [one and one.picked for one in found["urg_rank"]] == PART
    assert {name: model.asked for name, model in loader.loaded.items()} == {
        f"runs/{fold}": PART.count(fold) for fold in range(FOLDS)
    }
    whole, _ = answered(tmp_path / "whole", loader, folds=None, model="runs/1")
    for name in ("random", "oracle"):  # which know no parts
        assert [one and one.picked for one in found[name]] == [one and one.picked for one in whole[name]], name


def test_the_same_command_again_repeats_no_part(tmp_path: Path) -> None:
    first, again = Loader(), Loader()
    before, _ = answered(tmp_path, first)
    (tmp_path / "fold-1" / "answers" / "urg_rank.parquet").unlink()
    after, _ = answered(tmp_path, again)
    assert {name: model.asked for name, model in again.loaded.items() if model.asked} == {"runs/1": PART.count(1)}
    assert [one and one.picked for one in after["urg_rank"]] == [one and one.picked for one in before["urg_rank"]]


def test_parts_that_were_answered_alone_are_taken(tmp_path: Path) -> None:
    rows = [made for made, part in zip(ROWS, PART, strict=True) if part == 1]
    config = EvaluateConfig(
        shards="x", output=str(tmp_path), model="runs/{fold}", systems="urg_rank", folds=FOLDS, fold=1
    ).parts[0]
    alone, _ = answer(rows, "quality", config, AnswerStore(tmp_path, config, rows, "quality"), Loader())
    assert [one and one.picked for one in alone[0].answer(rows)] == [1] * len(rows)
    loader = Loader()
    found, _ = answered(tmp_path, loader)
    assert "runs/1" not in loader.loaded
    assert [one and one.picked for one in found["urg_rank"]] == PART


def test_a_system_that_one_part_lacks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urg.systems import SYSTEMS, SystemUnavailable

    def missing_in_part_2(setup: Any) -> Any:
        if setup.folders["simcls"].endswith("2"):
            raise SystemUnavailable("it was never trained")
        return SYSTEMS["longest"](setup)

    monkeypatch.setitem(SYSTEMS, "simcls", missing_in_part_2)
    for fold in range(FOLDS):
        (tmp_path / f"sim-{fold}").mkdir()
        write_system(tmp_path / f"sim-{fold}", "simcls", {})
        (tmp_path / f"sim-{fold}" / "config.json").touch()
    folders = {"simcls": str(tmp_path / "sim-{fold}")}
    found, unavailable = answered(tmp_path, Loader(), systems="random,simcls", folders=folders)
    assert found.keys() == {"random"}
    assert unavailable == {"simcls": "it was never trained"}


@pytest.mark.parametrize("fold", range(FOLDS))
def test_a_part_is_what_training_holds_out(fold: int) -> None:
    split = StubSplit(ROWS, ("quality",))
    config = EvaluateConfig(shards="x", output="y", folds=FOLDS, fold=fold)
    held_out = fold_split(split, FOLDS, fold)[1].ids  # type: ignore[arg-type]
    assert [ROWS[place].id for place in places(split, config)] == held_out  # type: ignore[arg-type]
    few = places(split, replace(config, rows=9))  # type: ignore[arg-type]
    assert few == [place for place in range(9) if PART[place] == fold]
    assert places(split, replace(config, fold=None)) == list(range(len(ROWS)))  # type: ignore[arg-type]


def test_a_part_gets_its_number_in_every_name() -> None:
    asked = EvaluateConfig(shards="x", output="y", model="m-{fold}/model", folders={"simcls": "s-{fold}"}, folds=2)
    assert [(part.fold, part.model, part.folders["simcls"]) for part in asked.parts] == [
        (0, "m-0/model", "s-0"),
        (1, "m-1/model", "s-1"),
    ]
    (one,) = replace(asked, fold=1).parts
    assert one.model == "m-1/model"
    assert one.parts == (one,)
    whole = EvaluateConfig(shards="x", output="y", model="m-{fold}")
    assert whole.parts == (whole,)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"folds": 1}, "folds=1: must be at least 2"),
        ({"fold": 0}, "fold=0: needs folds"),
        ({"folds": 3, "fold": 3}, "fold=3: must be one of the parts 0 to 2"),
        ({"folds": 3, "experiment": "noise"}, "fold=None: the experiment noise takes one part"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EvaluateConfig(shards="x", output="y", **settings)


def test_a_part_without_a_row_needs_no_model(tmp_path: Path) -> None:
    config = EvaluateConfig(shards="x", output=str(tmp_path), model="runs/{fold}", systems="urg_rank", folds=9)
    rows, loader = [row("only", ["a", "b"] * 5, quality=np.arange(10.0).tolist())], Loader()
    (system,), _ = answer(rows, "quality", config, AnswerStore(tmp_path, config, rows, "quality"), loader)
    assert list(loader.loaded) == [f"runs/{fold_of('only', 9)}"]
    (only,) = system.answer(rows)
    assert only is not None
    assert only.picked == fold_of("only", 9)
