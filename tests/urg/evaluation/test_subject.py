"""What is evaluated, as its parts are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.config import PrepareConfig, SampleSize
from data_pipeline.errors import UserError
from tests.preparing import prepare_without_ray
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.subject import open_subject


def test_actors_may_have_a_device_that_this_process_has_not(tmp_path: Path) -> None:
    sizes = SampleSize(train=8, dev=4, test=4)
    shards = prepare_without_ray(PrepareConfig(output=str(tmp_path / "set"), vocab_size=400, sample=sizes))
    absent = "cuda:7"

    def config(workers: int) -> EvaluateConfig:
        return EvaluateConfig(
            shards=str(shards), output=str(tmp_path / "out"), label="rougeL", device=absent, workers=workers
        )

    assert open_subject(config(workers=2)).config.device == absent
    with pytest.raises(UserError, match="cannot be used here"):
        open_subject(config(workers=0))
