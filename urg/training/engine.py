"""The engine: DeepSpeed behind six verbs. Nothing else in the project imports it.

Gradients are averaged over workers and micro-batches by DeepSpeed, while our losses are already shares of the global
batch (objective.py); `backward` undoes the averaging, so that what is applied is the plain sum, of however many
micro-batches a step has.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urg.config import TrainConfig
from urg.training.process import hidden


class Engine:
    """A model under DeepSpeed. Every method is collective: all workers must call it, in the same order."""

    def __init__(self, model: nn.Module, config: TrainConfig, world: int, resized: bool = False) -> None:
        """resized: `load` will read what another number of workers has saved."""
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.engine.use_gpu else "cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with hidden("mlflow"):  # its autotuner, which nobody asks for, would take seconds to import it
                import deepspeed

            if not config.engine.use_gpu:
                # A C++ extension that takes minutes to compile, and that gloo does without.
                deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed(dist_backend="nccl" if config.engine.use_gpu else "gloo", verbose=False)
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model,
                model_parameters=list(model.parameters()),
                config=deepspeed_config(config, config.accumulation(world), resized),
            )
            # It would copy scripts of its own into each checkpoint.
            self._engine._copy_recovery_script = lambda _folder: None
            self._clip, self._engine.clip_fp32_gradients = self._engine.clip_fp32_gradients, self._clip_what_is_there
        self._averaged_over = world * config.accumulation(world)
        self.resized = resized and config.engine.zero_stage > 0
        self._is_plain = config.engine.zero_stage == 0 and config.engine.dtype == "fp32"
        self._unwritten: Exception | None = None
        self._written: list[Path] = []
        self._write, self._engine.checkpoint_engine.save = self._engine.checkpoint_engine.save, self._try_to_write

    @property
    def module(self) -> Any:
        """The model itself."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return torch.device(self._engine.device)

    @property
    def skipped_steps(self) -> int:
        """Steps that were not applied because a gradient was not finite."""
        return int(self._engine.skipped_steps)

    def begin(self, last: bool) -> None:
        """Before a micro-batch. last: `step`, after it, applies the gradient."""
        self._engine.set_gradient_accumulation_boundary(last)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The model's forward pass."""
        return self._engine(*inputs, **options)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's share of the global gradient."""
        self._engine.backward(loss * self._averaged_over)

    def step(self, lr: float) -> None:
        """After a micro-batch; after a step's last one, clip and apply the gradient with this learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self._is_plain and self._engine.is_gradient_accumulation_boundary():
            self._drop_non_finite()
        self._engine.step()

    def _drop_non_finite(self) -> None:
        """Leave gradients of which one is not finite out of the step, as DeepSpeed's own optimizers do."""
        parameters = list(self.module.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            self._engine.skipped_steps += 1
            for parameter in parameters:
                parameter.grad = None

    def _clip_what_is_there(self) -> None:
        """Clip, for DeepSpeed, whose own cannot do without any gradient."""
        if any(parameter.grad is not None for parameter in self.module.parameters()):
            self._clip()

    def gradient_norm(self) -> float:
        """Norm of the last applied global gradient, before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def full_weights(self) -> dict[str, Tensor]:
        """The fp32 weights by name, on the CPU, gathered from all workers; only on rank 0, {} elsewhere."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.module.named_parameters():
            whole = safe_get_full_fp32_param(parameter)
            if torch.distributed.get_rank() == 0:
                weights[name] = (parameter if whole is None else whole).detach().to("cpu", torch.float32, copy=True)
        return weights

    def save(self, folder: Path) -> list[Path]:
        """Write model and optimizer state under `folder`, which has a folder `state`; returns what this worker wrote
        of it. Raises what hindered this worker from it, but only when all workers are through."""
        self._unwritten, self._written = None, []
        self._engine.save_checkpoint(str(folder), tag="state", save_latest=False)
        if self._unwritten:
            raise self._unwritten
        return self._written

    def _try_to_write(self, state_dict: Any, path: str) -> None:
        """Write a file, for DeepSpeed. An error is kept for later: the others wait for this worker."""
        try:
            self._write(state_dict, path)
            self._written.append(Path(path))
        except Exception as error:
            self._unwritten = error

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. DeepSpeed unpickles: only ever a verified checkpoint of the user's own."""
        path, _ = self._engine.load_checkpoint(str(folder), tag="state")
        if path is None:
            raise RuntimeError(f"DeepSpeed found no state in {folder}.")


def gradient_norms(model: nn.Module, terms: dict[str, Tensor]) -> dict[str, float]:
    """Norm of each term's own gradient over all parameters; no parameter's `.grad` is touched. Not collective."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        norms[name] = float(torch.stack([g.float().norm() for g in gradients if g is not None]).norm())
    return norms


def convert_for_any_number_of_workers(folder: Path, target: Path) -> None:
    """Write the state that `folder` has to `target`, as DeepSpeed's universal checkpoint: each parameter and its
    optimizer state whole, in fp32, so that any number of workers can load it. For one worker to do; on the way it takes
    twice the room of the optimizer's state.

    It unpickles: only ever a verified checkpoint of the user's own.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    options: dict[str, Any] = {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    # One process: more of them would be forks of a worker that has threads.
    options |= {"num_extract_workers": 1, "num_merge_workers": 1}
    main(argparse.Namespace(input_folder=str(folder / "state"), output_folder=str(target / "state"), **options))


def deepspeed_config(config: TrainConfig, accumulation: int, resized: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for a run. accumulation: what it divides losses by. resized: see Engine."""
    engine, optim = config.engine, config.optim
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": engine.use_gpu}
    return {
        "train_micro_batch_size_per_gpu": config.batch.micro,
        "gradient_accumulation_steps": accumulation,
        "checkpoint": {"load_universal": resized and engine.zero_stage > 0},
        "gradient_clipping": optim.clip,
        "bf16": {"enabled": engine.dtype == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optim.lr,
                "betas": list(optim.betas),
                "eps": optim.eps,
                "weight_decay": optim.weight_decay,
                "torch_adam": not engine.offload_optimizer,
            },
        },
    }
