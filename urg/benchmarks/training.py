"""One training step: ours beside the obvious code that encodes three times, and once; time and peak memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch

from urg.benchmarks.clock import held_bytes, in_own_process, in_turn, peak_bytes
from urg.benchmarks.obvious import ObviousURG
from urg.benchmarks.workload import batch_of, draw_rows, padded
from urg.devices import moved
from urg.loss_config import LossConfig
from urg.model import URG
from urg.objective import Counts, loss_terms, needs_teacher, total_loss
from urg.training.task import set_dropout

OBVIOUS = ("obvious_1", "obvious_3")
VARIANTS = ("ours", "ours_checkpointed", "ours_own_teacher", *OBVIOUS)
"""ours_checkpointed: with `engine.activation_checkpointing`. ours_own_teacher: with `loss.teacher_dropout` false."""


def measure_training(make: Callable[[], URG], rows: int, n: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of forward and backward of one batch for each variant, fp32, and whether the gradients agree."""
    model = make().to(device)
    steps = {name: training_step(name, model, rows, n, device) for name in VARIANTS}
    gradients = {name: steps[name]() for name in VARIANTS}
    timings = in_turn(steps, repeats, device)
    return {
        "rows": rows,
        "seconds": {name: timing.median for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "gradient_difference": {
            name: _relative_difference(gradients["ours"], gradients[name]) for name in VARIANTS[1:]
        },
    }


def training_step(
    name: str, model: URG, rows: int, n: int, device: torch.device
) -> Callable[[], dict[str, torch.Tensor]]:
    """A function that does one step of a variant, without the optimizer, and returns the gradients by name."""
    own = copy.deepcopy(model)
    drawn = draw_rows(rows, n, int(own.t5.config.vocab_size), seed=rows)
    batch = moved(batch_of(drawn), device)
    if name not in OBVIOUS:
        own.train()
        set_dropout(own, 0.0)
        if name == "ours_checkpointed":
            own.network.activation_checkpointing_enable()
        rows_P = batch.target_P // batch.target_BT.shape[1]
        counts = Counts.of(
            rows_P.bincount(minlength=rows).cpu().numpy(),
            batch.layout.mask_BN.sum(1).cpu().numpy(),
            own.settings.k,
            "mean",
        )  # as in training they are known from the data: no step waits for them
        config = LossConfig(teacher_dropout=name != "ours_own_teacher")
        return lambda: _our_step(own, batch, config, counts)
    obvious = ObviousURG(own)
    ids_BNL, mask_BNL = (moved(tensor, device) for tensor in padded(drawn))
    encodes = int(name.rsplit("_", 1)[1])

    def step() -> dict[str, torch.Tensor]:
        obvious.t5.zero_grad(set_to_none=True)
        terms = obvious.loss(ids_BNL, mask_BNL, batch.target_BT, batch.quality_BN, encodes)
        torch.stack(terms).sum().backward()
        return _gradients(obvious.t5)

    return step


def _our_step(model: URG, batch: Any, config: LossConfig, counts: Counts) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with_teacher = needs_teacher(config)
    output = model(batch.tokens_S, batch.layout, batch.target_BT, target_P=batch.target_P, with_teacher=with_teacher)
    total_loss(loss_terms(output, batch, config, counts), config).backward()
    return _gradients(model.t5)


def _gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a − b‖ / ‖b‖ over all parameters."""
    names = sorted(a.keys() | b.keys())
    difference = torch.stack([(a[name] - b[name]).norm() for name in names]).norm()
    return float(difference / torch.stack([b[name].norm() for name in names]).norm())


def training_memory(shape: str, rows: int, n: int, threads: int) -> dict[str, dict[str, int]]:
    """Bytes of each variant, each in a process of its own: `peak`, the most that a step holds beyond what was `held`
    before it (imports, model and batch), and what of it are `gradients`, which stay."""
    return {name: in_own_process(__name__, "print_peak", name, shape, rows, n, threads) for name in VARIANTS}


def print_peak(name: str, shape: str, rows: int, n: int, threads: int, started: float) -> None:
    """Print the bytes of one step of a variant; for a process that does nothing else, whenever it started."""
    from urg.benchmarks.shapes import make_model

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(shape).to(device)
    training_step(name, model, 1, 5, device)()  # what a first call allocates for ever is not the step's
    step = training_step(name, model, rows, n, device)
    held, peak = held_bytes(device), peak_bytes(step, device)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    print(json.dumps({"peak": peak, "held": held, "gradients": gradients}))
