"""Which candidates GenFuser reads in training: by label, by chance, or by what `urg.evaluate` left of a system."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet, TokenizedExample
from urg.config import TrainConfig
from urg.evaluate import evaluate
from urg.evaluation.config import EvaluateConfig, StatisticsConfig
from urg.systems.gen_fuser import best_first
from urg.systems.random import RandomScores
from urg.train import _identity, _require_same_run, with_absolute_paths
from urg.training.estimate import describe
from urg.training.fuser_choice import candidate_scores, require_predictions, scores_by_row
from urg.training.fuser_task import FuserTask
from urg.training.task import build_task

Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def predictions(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Split → predictions.parquet of `urg.evaluate` on it."""
    root = tmp_path_factory.mktemp("predictions")
    for split in ("train", "dev"):
        config = EvaluateConfig(
            shards=str(shards), output=str(root / split), split=split, label="rougeL", systems="models,random,longest",
            statistics=StatisticsConfig(resamples=0, trials=0), track=False, cases=0, seed=5,
        )  # fmt: skip
        evaluate(config)
    return {split: str(root / split / "predictions.parquet") for split in ("train", "dev")}


@pytest.fixture
def make(make_config: Make) -> Make:
    """make(files, choose=…, key__subkey=value, …): a training of GenFuser on the candidates that files choose."""

    def build(files: Iterable[str], choose: str = "longest", **settings: Any) -> TrainConfig:
        chosen = {"fuser__choose": choose, "fuser__predictions": json.dumps(list(files))}
        return make_config(system="gen_fuser", eval__metric="rougeL", **chosen, **settings)

    return build


def lengths(row: TokenizedExample) -> np.ndarray:
    """What `longest` goes by."""
    return np.array([len(text.strip()) for text in row.texts], dtype=np.float64)


def test_the_candidates_are_those_that_were_asked_for(
    make: Make, make_config: Make, predictions: dict[str, str]
) -> None:
    fuser: dict[str, Any] = {"system": "gen_fuser", "eval__metric": "rougeL", "seed": 7}
    chosen: list[tuple[TrainConfig, Callable[[TokenizedExample], np.ndarray]]] = [
        (make_config(**fuser), lambda row: row.scores["rougeL"]),
        (make_config(**fuser, fuser__choose="random"), RandomScores(7).scores),
        (make(predictions.values()), lengths),
    ]
    row = ShardSet.open(chosen[0][0].data.shards).split("train")[3]
    assert len({best_first(scores(row), 3) for _, scores in chosen}) == 3
    for config, scores in chosen:
        task = build_task(config, ShardSet.open(config.data.shards))
        assert isinstance(task, FuserTask)
        np.testing.assert_array_equal(task._source(row), task.module.texts.source(row, best_first(scores(row), 3)))


def test_a_fuser_says_what_chose_its_candidates(make: Make, predictions: dict[str, str], tmp_path: Path) -> None:
    config = make(predictions.values())
    task = build_task(config, ShardSet.open(config.data.shards))
    task.save(tmp_path, {name: p.detach().clone() for name, p in task.module.named_parameters()}, step=1)
    assert json.loads((tmp_path / "system.json").read_text())["settings"]["choose"] == "longest"
    assert "fused 3 candidates chosen by: longest." in task.card(1, {})


def test_on_the_dev_split_they_are_chosen_alike(make: Make, predictions: dict[str, str]) -> None:
    config = make(predictions.values())
    shards = ShardSet.open(config.data.shards)
    require_predictions(config, shards)
    task = build_task(config, shards)
    with torch.inference_mode():
        assert len(task.judge(shards.split("dev")[:2], torch.device("cpu"))) == 2


def altered(file: str, folder: Path, **columns: Callable[[list[Any]], list[Any]]) -> str:
    """A copy of the file with some columns changed, in all lines."""
    table = pyarrow.parquet.read_table(file)
    for name, change in columns.items():
        place = table.column_names.index(name)
        values = pyarrow.array(change(table[name].to_pylist()), table.schema.field(name).type)
        table = table.set_column(place, name, values)
    pyarrow.parquet.write_table(table, folder / "altered.parquet")
    return str(folder / "altered.parquet")


def test_files_that_do_not_fit_the_run_are_one_sentence_before_it_starts(
    make: Make, predictions: dict[str, str], tmp_path: Path
) -> None:
    train, dev = predictions["train"], predictions["dev"]
    (tmp_path / "text").write_text("no table")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["1"]}), tmp_path / "other.parquet")
    cases: list[tuple[list[str], str, str]] = [
        ([str(tmp_path / "absent")], "longest", r"absent cannot be read \(FileNotFoundError\); give predictions"),
        ([str(tmp_path / "text")], "longest", r"text cannot be read \(ArrowInvalid\)"),
        ([str(tmp_path / "other.parquet")], "longest", "has no column system"),
        ([train, dev], "pair_ranker", "fuser.choose='pair_ranker': .* have scores of longest, random; choose"),
        ([train], "longest", "longest has no scores of 3 of the 3 rows that the run reads of split dev, such as"),
        ([dev], "longest", "no scores of 22 of the 22 rows that the run reads of split train, .* --split train"),
        ([train, dev, train], "longest", "has row .* twice there"),
        ([altered(train, tmp_path, models=lambda own: [names[::-1] for names in own]), dev], "longest",
         "has other candidates there than in data.shards"),
    ]  # fmt: skip
    for files, choose, sentence in cases:
        config = make(files, choose)
        with pytest.raises(UserError, match=sentence):
            require_predictions(config, ShardSet.open(config.data.shards))
    config = make([altered(train, tmp_path, text=lambda own: ["other"] * len(own)), dev])
    with pytest.raises(UserError, match="has other candidates there"):
        require_predictions(config, ShardSet.open(config.data.shards))
    few = make([train, dev], data__limit=2, eval__rows=1)
    require_predictions(few, ShardSet.open(few.data.shards))


def test_a_row_without_scores_is_a_row_that_lacks(make: Make, predictions: dict[str, str], tmp_path: Path) -> None:
    def without_first(scores: list[Any]) -> list[Any]:
        longest = next(i for i, name in enumerate(names) if name == "longest")
        return [None if i == longest else own for i, own in enumerate(scores)]

    names = pyarrow.parquet.read_table(predictions["train"])["system"].to_pylist()
    config = make([altered(predictions["train"], tmp_path, scores=without_first), predictions["dev"]])
    with pytest.raises(UserError, match="no scores of 1 of the 22 rows"):
        require_predictions(config, ShardSet.open(config.data.shards))


def test_a_score_that_is_missing_comes_last(predictions: dict[str, str], tmp_path: Path) -> None:
    file = altered(predictions["train"], tmp_path, scores=lambda own: [s and [None, *s[1:]] for s in own])
    for scores in scores_by_row([file], "longest").values():
        assert np.isnan(scores).tolist() == [True] + [False] * (len(scores) - 1)


def test_a_worker_holds_the_scores_of_its_system_alone(
    make: Make, predictions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pyarrow.parquet.read_table
    own = read(predictions["train"])["system"].to_pylist().count("longest")
    tables: list[pyarrow.Table] = []

    def noted(*args: Any, **options: Any) -> pyarrow.Table:
        tables.append(read(*args, **options))
        return tables[-1]

    monkeypatch.setattr(pyarrow.parquet, "read_table", noted)
    candidate_scores(make([predictions["train"]]))
    assert [(set(table.column_names), table.num_rows) for table in tables] == [({"id", "scores"}, own)]


def test_a_run_does_not_go_on_with_files_that_have_changed(
    make: Make, predictions: dict[str, str], tmp_path: Path
) -> None:
    """One that an older version began has not kept what they held."""
    config = make([altered(predictions["train"], tmp_path), predictions["dev"]])
    shards = ShardSet.open(config.data.shards)
    stored = json.loads(json.dumps(_identity(config, shards)))
    _require_same_run(tmp_path, stored, _identity(config, shards))
    altered(predictions["train"], tmp_path, scores=lambda own: [scores and scores[::-1] for scores in own])
    with pytest.raises(UserError, match=r"configuration: what the files of fuser\.predictions hold\. Choose another"):
        _require_same_run(tmp_path, stored, _identity(config, shards))
    del stored["predictions"]
    _require_same_run(tmp_path, stored, _identity(config, shards))


def test_paths_are_made_absolute_and_a_dry_run_tells_of_files_that_are_not_there(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make(["here.parquet"])
    assert with_absolute_paths(config).fuser.predictions == [str(tmp_path / "here.parquet")]
    assert "predictions fuser.predictions: here.parquet cannot be read" in describe(config)
    with pytest.raises(UserError, match=r"here\.parquet cannot be read"):
        candidate_scores(config)
    by_label = replace(config, fuser=replace(config.fuser, choose="label", predictions=None))
    assert "predictions fuser" not in describe(by_label)
