"""What a run will do, from its configuration and data alone: steps and learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.folds import fold_split, tenth_split
from data_pipeline.sample import BASE_MODEL
from data_pipeline.shards import ShardSet, Split
from data_pipeline.tokenization import require_hub
from urg.batching import GlobalBatches
from urg.config import OptimConfig, TrainConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a run over one training split."""

    rows: int
    """Training rows."""
    global_batch: int
    """Rows of a step."""
    steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int
    """Steps over which the learning rate rises."""

    @classmethod
    def of(cls, config: TrainConfig, rows: int) -> Plan:
        """The plan for `rows` training rows. Raises UserError where there are none."""
        if rows < 1:
            raise UserError(f"split {config.data.train_split!r} has no rows to train on.")
        per_epoch = GlobalBatches(rows, config.global_batch, config.seed).steps_per_epoch
        steps = config.steps or max(1, round(config.epochs * per_epoch))
        return cls(rows, config.global_batch, steps, round(config.optim.warmup * steps))

    def lr(self, step: int, optim: OptimConfig) -> float:
        """Learning rate of step 1, 2, …: linear warm-up to the peak, then linear decay."""
        if step <= self.warmup_steps:
            return optim.lr * step / max(1, self.warmup_steps)
        left = (self.steps - step + 1) / max(1, self.steps - self.warmup_steps + 1)
        return optim.lr * max(optim.min_lr_ratio, left)


def open_data(config: TrainConfig) -> ShardSet:
    """The prepared set of a run, verified. Raises UserError for a missing or altered set, split or label."""
    shards = ShardSet.open(config.data.shards)
    shards.tokenizer()
    for split in training_and_dev(config, shards):
        split.has_label(config.data.label)
    return shards


def training_and_dev(config: TrainConfig, shards: ShardSet) -> tuple[Split, Split]:
    """What is trained on, and what the evaluations of the run measure: two splits, or under cross-validation rows of
    one. `data.fold_dev training` measures, to choose the model by, a tenth of the parts that are trained on, and never
    reads the part that is held out; `held_out` measures that part, and chooses nothing by it. Raises UserError where
    either is empty."""
    train, data = shards.split(config.data.train_split), config.data
    if data.folds is None or data.fold is None:
        return train, shards.split(data.dev_split)
    others, held_out = fold_split(train, data.folds, data.fold)
    if data.fold_dev == "held_out":
        return others, held_out
    trained, chosen_by = tenth_split(others)
    if not len(chosen_by) or not len(trained):
        raise UserError(
            f"of the {len(others)} rows of split {data.train_split} without part {data.fold} of {data.folds}, "
            f"{len(chosen_by)} would choose the model (a tenth, by a hash of the id): prepare more rows, or keep the "
            "last model by data.fold_dev held_out."
        )
    return trained, chosen_by


def rows_to_train_on(config: TrainConfig, rows: int) -> int:
    """About how many of a split's rows a run trains on, from their number alone: under cross-validation the parts are
    of about equal size."""
    if config.data.folds:
        rows -= rows // config.data.folds
        rows -= rows // 10 if config.data.fold_dev == "training" else 0
    return min(rows, config.data.limit or rows)


def base_model(config: TrainConfig) -> str | None:
    """The folder or hub id to start from; None for random weights. `sample` is the small model that ships with us."""
    return str(BASE_MODEL) if config.model.base == "sample" else config.model.base


def require_base(config: TrainConfig) -> None:
    """Raise UserError where the base model cannot be had or is nothing for URG: here, once, and not in every worker."""
    base = base_model(config)
    if base is None:
        return
    if not Path(base).is_dir():
        require_cached_or_hub(base)
    elif not any(Path(base).glob("*.safetensors")):
        raise UserError(f"model folder {base} has no weights (*.safetensors): download or export the model again.")
    if config.system == "urg":
        from urg.backbones import backbone_type

        backbone_type(base_config(base), base)


def base_config(base: str) -> Any:
    """The config.json of a folder or hub id. Raises UserError where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base {base} has no readable config.json: name a model folder or hub id.") from error


def require_cached_or_hub(base: str) -> None:
    """Raise UserError where a hub id is not in the local cache, and the hub cannot be reached."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError):
        require_hub(f"the model {base}")


def training_rows(config: TrainConfig, split: Split) -> int:
    """Rows of the training split that are used."""
    return min(len(split), config.data.limit or len(split))
