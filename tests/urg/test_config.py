"""Settings that are refused when they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from urg.config import (
    DataConfig,
    EngineConfig,
    EnsembleConfig,
    EvalConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
)
from urg.loss_config import LossConfig


@pytest.mark.parametrize(
    ("folds", "fold", "sentence"),
    [
        (1, 0, "data.folds=1: must be at least 2"),
        (5, None, "data.fold=None: must be one of the parts 0 to 4"),
        (5, 5, "data.fold=5: must be one of the parts 0 to 4"),
        (None, 0, "data.fold=0: needs data.folds"),
    ],
)
def test_a_fold_needs_its_number_of_parts(folds: int | None, fold: int | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DataConfig(folds=folds, fold=fold)
    assert DataConfig(folds=5, fold=4).fold == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 2, "min_workers": 3}, "engine.min_workers=3: must be from 1 to engine.workers, which is 2"),
        ({"min_workers": 0}, "engine.min_workers=0"),
        ({"timeout_s": 0}, "engine.timeout_s=0: must be positive"),
        ({"resize_every_s": 0}, "engine.resize_every_s=0: must be positive"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EngineConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["mass", "log_mass"])
def test_the_mass_of_a_response_alone_is_no_scale(scale: Any) -> None:
    evaluation, model = EvalConfig(metric="rougeL"), ModelConfig(score_tokens="response")
    with pytest.raises(ValueError, match=rf"loss\.rank_scale='{scale}': is the attention on all tokens"):
        TrainConfig(eval=evaluation, model=model, loss=LossConfig(rank_scale=scale))
    assert TrainConfig(eval=evaluation, model=model, loss=LossConfig(rank_scale="log")).model.score_layers == "all"


@pytest.mark.parametrize("gap", [-0.1, float("nan"), float("inf")])
def test_a_gap_that_is_none_is_refused(gap: float) -> None:
    with pytest.raises(ValueError, match=r"model\.k_gap=.*: must be 0 or positive, or null"):
        ModelConfig(k_gap=gap)
    with pytest.raises(ValueError, match=r"^k_gap=.*: must be 0 or positive"):
        EnsembleConfig("model", Path("in"), Path("out"), k_gap=gap)
    assert ModelConfig(k_gap=0.0).k_gap == 0


@pytest.mark.parametrize("system", ["gen_fuser", "pair_ranker"])
def test_a_gap_is_one_of_urgs_scores(system: Any) -> None:
    evaluation = EvalConfig(metric="rougeL")
    with pytest.raises(ValueError, match=rf"model\.k_gap=0\.5: is a gap between URG's scores: {system} has none"):
        TrainConfig(system=system, eval=evaluation, model=ModelConfig(k_gap=0.5))
    assert TrainConfig(eval=evaluation, model=ModelConfig(k_gap=0.5)).model.k_gap == 0.5


def test_workers_that_come_and_go_need_checkpoints() -> None:
    engine, evaluation = EngineConfig(workers=2, min_workers=1), EvalConfig(metric="rougeL")
    with pytest.raises(ValueError, match=r"engine\.min_workers=1: needs checkpoint_every"):
        TrainConfig(engine=engine, eval=evaluation)
    assert TrainConfig(engine=engine, eval=evaluation, checkpoint_every=50).engine.min_workers == 1


@pytest.mark.parametrize("uri", ["https://ann:hunter2@mlflow", "postgresql://ann:hun/ter2@db/mlflow"])
def test_a_login_in_the_tracking_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        TrackingConfig(uri=uri)
    assert "ter2" not in str(refused.value)
    assert TrackingConfig(uri="https://mlflow:5000").uri == "https://mlflow:5000"
