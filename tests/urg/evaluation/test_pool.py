"""Answers by Ray Data actors equal those of one process, and what a user can mend comes back as one sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet
from tests.urg.made_up import StubEnsemble
from urg.evaluation.answer_store import AnswerStore
from urg.evaluation.answering import answer
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.noise import run_noise
from urg.evaluation.subject import places
from urg.systems import Answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def load_stub(config: EvaluateConfig) -> StubEnsemble:
    if config.num_beams == 7:
        raise UserError("the model is damaged")
    return StubEnsemble(noise=0.3)


@dataclasses.dataclass
class TellsWhatItSees(StubEnsemble):
    """Fuses a row to all of its candidates."""

    def rank_and_fuse_batch(self, queries: Sequence[Any], k: int | None = None, **_: Any) -> list[Any]:
        return [SimpleNamespace(text=" ".join(query.candidates[:k])) for query in queries]


def load_telling(config: EvaluateConfig) -> StubEnsemble:
    return TellsWhatItSees()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_started: None) -> Path:
    from data_pipeline.config import PrepareConfig, SampleSize
    from data_pipeline.prepare import prepare

    folder = tmp_path_factory.mktemp("pool")
    sizes = SampleSize(train=8, dev=4, test=70)
    return prepare(PrepareConfig(output=str(folder / "prepared"), vocab_size=400, sample=sizes))


def plain(answers: Sequence[Answer | None]) -> str:
    return json.dumps([None if a is None else dataclasses.asdict(a) | {"scores": list(a.scores)} for a in answers])  # type: ignore[arg-type]


def test_actors_answer_as_one_process_does(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    rows = ShardSet.open(prepared).split("test")
    found = {}
    for workers in (0, 2):
        output = tmp_path / str(workers)
        config = EvaluateConfig(
            shards=str(prepared), output=str(output), model=str(tmp_path / "model"), systems="random,urg,urg_rank",
            workers=workers,
        )  # fmt: skip
        store = AnswerStore(output, config, rows, "rougeL")
        systems, unavailable = answer(rows, "rougeL", config, store, load_stub)  # type: ignore[arg-type]
        assert not unavailable
        found[workers] = {system.name: plain(system.answer(rows)) for system in systems}
        assert [system.kind for system in systems] == ["floor", "ranker", "fuser"]
        assert {path.name for path in (output / "answers").iterdir()} == {
            "random.parquet", "urg.parquet", "urg_rank.parquet",
        }  # fmt: skip
        assert store.load("urg") is not None
    assert found[2] == found[0]
    assert len(json.loads(found[2]["urg"])) == 70

    part = dataclasses.replace(config, folds=3, fold=2, systems="urg_rank")  # its rows are not the split's first ones
    own = [rows[place] for place in places(rows, part)]
    store = AnswerStore(output, part, own, "rougeL")
    ((ranked,), _) = answer(own, "rougeL", part, store, load_stub)  # type: ignore[arg-type]
    by_id = dict(zip((row.id for row in rows), json.loads(found[0]["urg_rank"]), strict=True))
    assert json.loads(plain(ranked.answer(own))) == [by_id[row.id] for row in own]

    broken = dataclasses.replace(config, num_beams=7)
    with pytest.raises(UserError, match="the model is damaged"):
        answer(rows, "rougeL", broken, AnswerStore(output, broken, rows, "rougeL"), load_stub)  # type: ignore[arg-type]
    nothing = dataclasses.replace(config, model=None)
    systems, unavailable = answer(rows, "rougeL", nothing, AnswerStore(output, nothing, rows, "rougeL"))
    assert [system.name for system in systems] == ["random"]
    assert "--model" in unavailable["urg"]
    many = dataclasses.replace(config, workers=500, fresh=True)
    with pytest.raises(UserError, match="500 workers need 500 CPUs and this machine has"):
        answer(rows, "rougeL", many, AnswerStore(output, many, rows, "rougeL"), load_stub)  # type: ignore[arg-type]


def test_noise_by_actors_is_that_of_one_process(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an answer that is kept is not asked for again; what cannot run is told with its reason."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "urg.json").write_text(json.dumps({"label": "rougeL", "steps": 9}))
    found = {}
    for workers in (0, 2):
        output = tmp_path / str(workers)
        output.mkdir()
        config = EvaluateConfig(
            shards=str(prepared), output=str(output), model=str(model), systems="urg,urg_rank,llm_blender",
            workers=workers, experiment="noise",
        )  # fmt: skip
        found[workers] = run_noise(config, output, load_telling)  # type: ignore[arg-type]
        assert "--folders" in found[workers].missing["llm_blender"]
    assert found[2] == found[0]
    assert found[2].means["urg"]["base"] != found[2].means["urg"]["12"]
    again = dataclasses.replace(config, systems="urg")
    monkeypatch.setattr("urg.evaluation.noisy_texts.lines_of_pool", None)
    assert run_noise(again, output, load_telling).means == found[2].means  # type: ignore[arg-type]
