"""What keeps a run from starting on this machine, found without starting it: one line each, for a dry run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.ray_session import on_cluster
from urg.config import TrainConfig

_MIX_INSTRUCT = "hf:llm-blender/mix-instruct"
_PRESETS_TOKENIZER = "google/flan-t5-large"


def prepare_command(config: TrainConfig) -> str:
    """The command that makes the prepared set which a run reads."""
    from urg.training.plan import base_model

    shards, source = config.data.shards, ["--config", "sample"]
    if Path(shards).name != "sample":
        rows = _MIX_INSTRUCT if Path(shards).name == "mix-instruct" else "ROWS.jsonl"
        # A baseline reads the texts, by a tokenizer of its own: URG's set is its set too.
        tokenizer = (base_model(config) or "train") if config.system == "urg" else _PRESETS_TOKENIZER
        source = ["--input", rows, "--tokenizer", tokenizer]
    return shlex.join(["python", "-m", "data_pipeline.prepare", *source, "--output", shards])


def model_line(config: TrainConfig) -> list[str]:
    """A line where the base model is not on this machine and the hub cannot be reached.

    Raises UserError for a base that is no model, or none for the system.
    """
    from urg.training.plan import base_model, require_base, require_cached_or_hub

    base = base_model(config)
    if base is not None and not Path(base).is_dir():
        try:
            require_cached_or_hub(base)
        except UserError as error:
            return [f"model       {error}"]
    require_base(config)
    return []


def predictions_line(config: TrainConfig) -> list[str]:
    """A line where the predictions that choose a fuser's candidates cannot be used, as far as the files alone tell."""
    from urg.training.fuser_choice import candidate_scores

    try:
        if config.system == "gen_fuser":
            candidate_scores(config)
    except UserError as error:
        return [f"predictions {error}"]
    return []


def machine_line(config: TrainConfig) -> list[str]:
    """A line where the workers want more than this machine has. A cluster, named by RAY_ADDRESS, may scale up."""
    import torch

    engine = config.engine
    workers = engine.min_workers or engine.workers
    wanted = {"CPUs": workers * engine.cpus_per_worker, "GPUs": workers if engine.use_gpu else 0}
    have = {"CPUs": os.cpu_count() or 1, "GPUs": torch.cuda.device_count()}
    if on_cluster() or all(wanted[kind] <= have[kind] for kind in wanted):
        return []
    kinds = [kind for kind in wanted if wanted[kind]]
    needs, holds = (" and ".join(f"{side[kind]} {kind}" for kind in kinds) for side in (wanted, have))
    return [f"needs       {needs}; this machine has {holds}: only on a cluster"]


def k_line(config: TrainConfig, facts: Mapping[str, Any]) -> list[str]:
    """A line where every candidate of every row is fused. facts: of the training split."""
    most = facts["candidates"]["max"]
    if config.system not in ("urg", "gen_fuser") or config.model.k < most:
        return []
    so = "all of them are fused" if config.model.k_gap is None else "no last one is left for robust training"
    return [f"K           {config.model.k}, and no row has more than {most} candidates: {so}"]


def storage_line(config: TrainConfig) -> list[str]:
    """A line where the run folder cannot be written, as far as permissions tell: nothing is touched."""
    if "://" in config.storage:
        return [f"storage     {config.storage} is no folder: a run would be refused"]
    run = Path(config.storage).expanduser().absolute() / config.name
    there = next(path for path in (run, *run.parents) if path.exists())
    # Root may write where the bits forbid it, but not in such as /proc.
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK) and there.stat().st_mode & 0o222:
        return []
    return [f"storage     {run} cannot be written ({there} is no folder to write in): a run would be refused"]
