"""Each system beside URG through the same trainer: three steps on a real Ray worker, and the folder that comes out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.shards import ShardSet
from urg.config import TrainConfig
from urg.systems import Setup, build_systems
from urg.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Make = Callable[..., TrainConfig]
TERMS = {
    "pair_ranker": ["pairs"],
    "simcls": ["gold", "pairs"],
    "summareranker": ["balance", "best"],
    "gen_fuser": ["ce"],
}


LONG = [pytest.param(system, marks=pytest.mark.exhaustive) for system in ("simcls", "summareranker")]


@pytest.mark.parametrize("system", ["pair_ranker", "gen_fuser", *LONG])
def test_a_system_trains_and_its_folder_answers(
    system: str, make_config: Make, shards: Path, ray_started: None
) -> None:
    metric = "rougeL" if system == "gen_fuser" else "label"
    config = make_config(system, system=system, steps=3, eval__metric=metric, eval__every=3)
    folder = train(config)
    log = (Path(config.storage) / system / "train.log").read_text()
    last = re.search(r"step 3/3  loss ([\d.]+)  (.*)  \d+ tokens/s", log)
    assert last is not None, log
    assert re.findall(r"([a-z]+) [\d.e-]+", last[2]) == TERMS[system]
    assert ("label" in log.split("dev:")[1]) == (system != "gen_fuser")
    rows = ShardSet.open(shards).split("test")[:2]
    setup = Setup("rougeL", (), folders={system: str(folder)}, num_beams=1, max_new_tokens=4, device="cpu")
    if system == "gen_fuser":
        from urg.systems.gen_fuser import shared_fuser

        assert [len(fused.used) for fused in shared_fuser(setup).fuse(rows, [r.scores["rougeL"] for r in rows])] == [
            3,
            3,
        ]
        return
    (ranker,) = [one for one in build_systems(setup)[0] if one.name == system]
    assert [answer is not None and answer.picked is not None for answer in ranker.answer(rows)] == [True, True]
