"""A run may go on with another number of workers: the same batches, the same optimizer state, the same loss."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from urg.config import TrainConfig
from urg.training.state import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Make = Callable[..., TrainConfig]
Run = Callable[..., list[Outcome | None]]


def _losses(run: Path) -> dict[int, float]:
    found = re.finditer(r"^step (\d+)/\d+  loss ([\d.]+)", (run / "train.log").read_text(), re.M)
    return {int(match[1]): float(match[2]) for match in found}


def _weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    [folder] = run.glob(f"checkpoint-{step:08d}-*")
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"engine__zero_stage": 2}, marks=pytest.mark.faults),
        pytest.param({"engine__zero_stage": 0}, marks=pytest.mark.exhaustive),
        pytest.param({"engine__zero_stage": 1}, marks=pytest.mark.exhaustive),
        pytest.param({"engine__zero_stage": 3}, marks=pytest.mark.exhaustive),
        pytest.param({"engine__zero_stage": 0, "engine__dtype": "bf16"}, marks=pytest.mark.exhaustive),
        pytest.param({"engine__offload_optimizer": True, "engine__dtype": "bf16"}, marks=pytest.mark.exhaustive),
        pytest.param({"engine__zero_stage": 3, "engine__dtype": "bf16"}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_two_workers_then_one_then_two_learn_as_two_throughout(
    make_config: Make, run_workers: Run, options: dict[str, object]
) -> None:
    """Three runs, each from a checkpoint of the one before, with 2, 1 and 2 workers; without dropout, which is keyed by
    the worker."""
    common = {"steps": 9, "eval__every": 9, "checkpoint_every": 3, "model__dropout": 0.0, "optim__lr": 0.002, **options}
    common |= {"engine__workers": 2, "engine__min_workers": 1, "keep_checkpoints": 3}
    whole = make_config("whole", **common)
    assert run_workers(whole) == [Outcome()] * 2
    runs = Path(whole.storage)
    [third] = (runs / "whole").glob("checkpoint-00000003-*")
    one = make_config("one", **common, resume=third)
    assert run_workers(one, 1) == [Outcome()]
    [sixth] = (runs / "one").glob("checkpoint-00000006-*")
    again = make_config("again", **common, resume=sixth)
    assert run_workers(again) == [Outcome()] * 2
    assert "written by 2 workers, now 1" in (runs / "one" / "train.log").read_text()
    assert "written by 1 workers, now 2" in (runs / "again" / "train.log").read_text()
    assert not list(runs.glob("*/.resized"))
    losses = {name: _losses(runs / name) for name in ("whole", "one", "again")}
    assert [sorted(of) for of in losses.values()] == [[*range(1, 10)], [*range(4, 10)], [*range(7, 10)]]
    tolerance = 2e-2 if options.get("engine__dtype") == "bf16" else 2e-4
    for name in ("one", "again"):
        for step, loss in losses[name].items():
            assert loss == pytest.approx(losses["whole"][step], abs=tolerance), (name, step)
    if options.get("engine__dtype") != "bf16":
        for name, weight in _weights(runs / "whole", 9).items():
            torch.testing.assert_close(_weights(runs / "again", 9)[name], weight, atol=1e-4, rtol=1e-3)
