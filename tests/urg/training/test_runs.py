"""Training runs on real Ray workers under real DeepSpeed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from urg.batching import Cursor, GlobalBatches
from urg.config import TrainConfig
from urg.objective import weighted_sum
from urg.train import train
from urg.training.plan import Plan, open_data, training_and_dev
from urg.training.task import Share, build_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Make = Callable[..., TrainConfig]
TERMS = re.compile(r"step (\d+)/\d+  loss ([\d.]+)")


def _losses(run: Path) -> dict[int, float]:
    """The last loss that the run's log has for each step."""
    return {int(m[1]): float(m[2]) for m in map(TERMS.match, (run / "train.log").read_text().splitlines()) if m}


def _final(run: Path) -> dict[str, torch.Tensor]:
    newest = max(run.glob("checkpoint-*"))
    return load_file(newest / "model" / "model.safetensors")


def _worker_pids() -> list[int]:
    """Processes of this session's Ray Train workers."""
    ours = psutil.Process().children(recursive=True)
    return [process.pid for process in ours if "TrainWorker" in " ".join(process.cmdline())]


def _by_hand(config: TrainConfig) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """The losses by step and the final weights of a loop of plain PyTorch, each global batch as one."""
    task = build_task(config, open_data(config))
    split, _ = training_and_dev(config, open_data(config))
    plan, optim = Plan.of(config, len(split)), config.optim
    batches, cursor = GlobalBatches(plan.rows, config.global_batch, config.seed), Cursor()
    optimizer = torch.optim.AdamW(task.module.parameters(), betas=optim.betas, eps=optim.eps, weight_decay=0.0)
    losses = {}
    for step in range(1, plan.steps + 1):
        rows, cursor = batches.at(cursor)
        batch = task.batch(Share([split[int(row)] for row in rows], rows, step, fillers=0), torch.device("cpu"))
        loss = weighted_sum(task.terms(task.module, batch, task.counts(split, rows)), task.weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = plan.lr(step, optim)
        optimizer.step()
        losses[step] = loss.item()
    return losses, {name.removeprefix("network."): weight.detach() for name, weight in task.module.named_parameters()}


def test_two_workers_equal_one_with_twice_the_accumulation_and_a_plain_loop(
    make_config: Make, ray_started: None
) -> None:
    """With so large an ε, and without clipping, Adam's steps grow with the gradient: not its direction alone counts.
    The budget of one token has each row taken alone: twice the micro-batches of the configuration."""
    plain = {"model__dropout": 0.0, "optim__clip": 0, "optim__eps": 1.0, "optim__lr": 0.1}
    one = make_config("one", **plain, batch__accumulation=2)
    two = make_config("two", **plain, engine__workers=2, batch__tokens=1)
    for config in (one, two):
        train(config)
    losses, weights = _by_hand(one)
    assert losses[1] - losses[6] > 0.1
    for config in (one, two):
        run = Path(config.storage) / config.name
        assert _losses(run) == pytest.approx(losses, abs=2e-4)
        final = _final(run)
        for name, weight in weights.items():
            torch.testing.assert_close(final[name], weight, atol=2e-4, rtol=2e-3)


@pytest.mark.faults
def test_a_killed_worker_leaves_no_trace_in_the_weights(make_config: Make, ray_started: None) -> None:
    """SIGKILL in the middle of an epoch, dropout on: the final weights are those of an undisturbed run, bit for bit."""
    calm, hit = (make_config(name, engine__workers=2, engine__dtype="bf16", steps=9) for name in ("calm", "hit"))
    train(calm)
    run = Path(hit.storage) / hit.name
    killed: list[int] = []

    def kill_after_step_4() -> None:
        while not killed:
            time.sleep(0.05)
            if (run / "train.log").exists() and "step 4/" in (run / "train.log").read_text():
                killed.append(_worker_pids()[-1])
                os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_after_step_4, daemon=True).start()
    train(hit)
    log = (run / "train.log").read_text()
    assert killed
    assert "resuming from" in log
    assert log.count("step 4/9  loss") == 2  # the second time after the restart from step 3
    for name, weight in _final(Path(calm.storage) / calm.name).items():
        assert torch.equal(weight, _final(run)[name]), name


def test_a_finished_run_is_left_alone_and_another_configuration_refused(
    make_config: Make, ray_started: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_pipeline.errors import UserError

    train(make_config(steps=1))
    before = sorted((path, path.stat().st_mtime) for path in Path(make_config().storage).rglob("*.safetensors"))
    train(make_config(steps=1))
    assert "already done its 1 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"optim.lr \(was 0.01, now 0.02\)"):
        train(make_config(steps=1, optim__lr=0.02))
    with pytest.raises(UserError, match="choose another --name"):
        train(make_config(steps=1, resume="never"))
    assert before == sorted((path, path.stat().st_mtime) for path in Path(make_config().storage).rglob("*.safetensors"))


def test_a_new_run_can_start_from_a_checkpoint_of_another(make_config: Make, ray_started: None) -> None:
    """`--resume PATH`: the first three steps of one run and the last three of another are one run of six."""
    whole = make_config("whole", eval__every=6, checkpoint_every=3)
    train(whole)
    first = min((Path(whole.storage) / "whole").glob("checkpoint-*"))
    assert first.name.startswith("checkpoint-00000003-")  # written without an evaluation
    rest = make_config("rest", resume=first, eval__every=6)
    train(rest)
    assert sorted(_losses(Path(rest.storage) / "rest")) == [4, 5, 6]
    assert (Path(rest.storage) / "rest" / "model" / "model.safetensors").is_file()
    for name, weight in _final(Path(whole.storage) / "whole").items():
        assert torch.equal(weight, _final(Path(rest.storage) / "rest")[name]), name


def test_a_base_model_cut_short_is_refused_by_the_workers_in_one_sentence(
    make_config: Make, ray_started: None, tmp_path: Path
) -> None:
    from data_pipeline.errors import UserError
    from data_pipeline.sample import BASE_MODEL

    base = tmp_path / "base"
    shutil.copytree(BASE_MODEL, base)
    os.truncate(base / "model.safetensors", 4_000_000)
    with pytest.raises(UserError, match=r"base cannot be loaded .*; copy, download or export it again"):
        train(make_config(model__base=base))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"engine__zero_stage": 0}, marks=pytest.mark.exhaustive),
        # DeepSpeed compiles its optimizer first, which takes minutes.
        pytest.param({"engine__offload_optimizer": True, "engine__dtype": "bf16"}, marks=pytest.mark.exhaustive),
        pytest.param(
            {"engine__zero_stage": 1, "engine__dtype": "bf16", "engine__activation_checkpointing": True},
            marks=pytest.mark.exhaustive,
        ),
        pytest.param({"engine__zero_stage": 3, "engine__workers": 2}, marks=pytest.mark.exhaustive),
        pytest.param(
            {"engine__zero_stage": 3, "engine__workers": 2, "loss__teacher_dropout": False},
            marks=pytest.mark.exhaustive,
        ),
        {"engine__zero_stage": 3, "engine__workers": 2, "engine__dtype": "bf16"},
    ],
    ids=str,
)
def test_every_zero_stage_learns_and_exports_a_model_that_loads(
    make_config: Make, ray_started: None, options: dict[str, object]
) -> None:
    from urg.ensemble import Ensemble

    config = make_config("stage", **options, steps=4, eval__every=4)
    model = train(config)
    losses = _losses(Path(config.storage) / config.name)
    assert losses[4] < losses[1]
    fused = Ensemble.from_pretrained(model).rank_and_fuse("Which?", ["one", "two", "three", "four"], max_new_tokens=3)
    assert len(fused.used) == 3
    assert sum(fused.ranking.scores) > 0


@pytest.mark.faults
def test_the_driver_is_killed_and_the_same_command_goes_on(make_config: Make, shards: Path, tmp_path: Path) -> None:
    """kill -9 of the whole `python -m urg.train`; run again, it ends with the weights of an undisturbed run."""
    import dataclasses

    import yaml

    config = make_config("driver", steps=80, engine__dtype="bf16", eval__every=10)
    file = tmp_path / "driver.yaml"
    file.write_text(yaml.safe_dump({**dataclasses.asdict(config), "optim": {"lr": 0.01}}))
    command = [sys.executable, "-m", "urg.train", "--config", str(file)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    calm = subprocess.run([*command, "--name", "calm"], capture_output=True, text=True, env=environment, check=False)
    assert calm.returncode == 0, calm.stderr[-2000:]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    run = Path(config.storage) / "driver"
    while not ((run / "train.log").exists() and "step 15/" in (run / "train.log").read_text()):
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "resuming from" in (run / "train.log").read_text()
    for name, weight in _final(run.parent / "calm").items():
        assert torch.equal(weight, _final(run)[name]), name
