"""What a run would be, without running it: `python -m urg.train --dry_run true …`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_pipeline.errors import UserError
from data_pipeline.tokenization import Template
from urg.config import TrainConfig

if TYPE_CHECKING:
    from data_pipeline.shards import ShardSet

_GIB = 2**30
RANKER_FRAME = 3  # tokens around a text: opening, prefix, end
FUSER_FRAME = 40  # tokens of GenFuser's own words


def describe(config: TrainConfig) -> str:
    """The resolved configuration, data, steps, resources, parameters, and an estimate of memory a worker; and a line
    for each thing that a run would lack here. Writes nothing.

    Raises UserError for what no run could be made of.
    """
    from urg.training.readiness import machine_line, model_line, predictions_line, storage_line

    lacking = model_line(config)
    data, tokens, vocab_size = _data(config)
    device = "GPU" if config.engine.use_gpu else f"{config.engine.cpus_per_worker} CPU"
    workers = " to ".join(str(n) for n in (config.engine.min_workers, config.engine.workers) if n)
    lines = [
        yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).rstrip(),
        "",
        f"system      {config.system}",
        *data,
        *predictions_line(config),
        f"workers     {workers} × {device}, ZeRO-{config.engine.zero_stage}, {config.engine.dtype}",
        *machine_line(config),
        *(lacking or _size(config, tokens, vocab_size)),
        *storage_line(config),
        "dry run: nothing was written.",
    ]
    return "\n".join(lines)


def _data(config: TrainConfig) -> tuple[list[str], int | None, int | None]:
    """The lines of data and steps, the encoder tokens of a micro-batch, and the size of the vocabulary; the last two
    None where there is no prepared set yet."""
    from data_pipeline.shards import CURRENT, MANIFEST, ShardSet
    from urg.training.plan import Plan, rows_to_train_on
    from urg.training.readiness import k_line, prepare_command

    if not any((Path(config.data.shards).expanduser() / name).is_file() for name in (CURRENT, MANIFEST)):
        length = f"{config.steps} of" if config.steps else f"{config.epochs:g} epochs in steps of"
        missing = f"data        there is no prepared set in {config.data.shards} yet: {prepare_command(config)}"
        return [missing, f"steps       {length} {config.global_batch} rows"], None, None
    shards = ShardSet.open(config.data.shards)
    facts = _training_split(shards, config)
    plan = Plan.of(config, rows_to_train_on(config, facts["rows"]))
    lines = [
        f"data        {plan.rows} rows of {shards.folder}",
        *k_line(config, facts),
        f"steps       {plan.steps} of {plan.global_batch} rows ({plan.rows / plan.global_batch:.1f} an epoch), "
        f"{plan.warmup_steps} of warm-up",
    ]
    tokens = round(tokens_per_row(config, facts, shards.template) * config.batch.micro)
    return lines, min(tokens, config.batch.tokens or tokens), len(shards.tokenizer())


def _size(config: TrainConfig, tokens: int | None, vocab_size: int | None) -> list[str]:
    """The lines of parameters and memory; what depends on data is left out where there is none."""
    if vocab_size is None and config.model.base is None:
        return ["parameters  not known before the data, whose tokenizer says how large the vocabulary is"]
    parameters, width, layers = model_size(config, vocab_size or 0)
    memory = memory_per_worker(config, parameters, width, layers, tokens or 0)
    if tokens is None:
        del memory["activations"]
    lines = [
        f"parameters  {parameters:,}",
        f"memory      about {sum(memory.values()):.2f} GiB a worker: "
        + ", ".join(f"{part} {gib:.2f}" for part, gib in memory.items()),
    ]
    if tokens is None:
        return [*lines, "            and activations, which depend on the data"]
    return [*lines, f"tokens      about {tokens:,} encoder tokens a worker and micro-batch"]


def _training_split(shards: ShardSet, config: TrainConfig) -> dict[str, Any]:
    """What the manifest says of the training split: reading the split itself would write its cache."""
    splits, name, label = shards.manifest["splits"], config.data.train_split, config.data.label
    if name not in splits:
        raise UserError(f"{shards.folder} has no split {name}; it has {', '.join(splits)}.")
    facts: dict[str, Any] = splits[name]
    if label not in facts["scores"]:
        has = f"{', '.join(facts['scores'])}: name one of those by data.label, or" if facts["scores"] else "none:"
        raise UserError(
            f"split {name} has no score {label}; it has {has} add it by data_pipeline.label and prepare again."
        )
    return facts


def tokens_per_row(config: TrainConfig, facts: Mapping[str, Any], template: Template) -> float:
    """Mean encoder tokens of a row in a training step, in tokens of the shards' tokenizer. facts: of the split."""
    question, response = facts["tokens"]["question"]["mean"], facts["tokens"]["response"]["mean"]
    candidates = facts["candidates"]["total"] / max(1, facts["rows"])
    if config.system == "urg":
        return float(template.candidate_length(question, response) * candidates)
    if config.system == "gen_fuser":
        own = config.fuser
        cut = min(candidates, config.model.k) * min(response, own.candidate_tokens)
        return float(min(own.source_tokens, question + cut + FUSER_FRAME))
    source = min(question + RANKER_FRAME, config.ranker.source_tokens)
    candidate = min(response + RANKER_FRAME, config.ranker.candidate_tokens)
    if config.system == "pair_ranker":
        if config.ranker.fills_up:
            room = (config.ranker.source_tokens - source) / 2 + config.ranker.candidate_tokens
            candidate = min(response + RANKER_FRAME, room)
        return float(min(config.ranker.pairs, candidates * (candidates - 1) / 2) * (source + 2 * candidate))
    if config.system == "simcls":
        return float(source + (candidates + 1) * candidate)
    return float(candidates * (source + candidate))


def model_size(config: TrainConfig, vocab_size: int) -> tuple[int, int, int]:
    """(parameters, width D, layers of encoder and decoder together), from the model's shape alone, without its
    weights. A ranker's head is left out."""
    import torch
    from transformers import T5Config

    from urg.backbones import backbone_type
    from urg.training.plan import base_config, base_model

    base = base_model(config)
    if base is None:
        shape = T5Config(
            vocab_size=vocab_size, feed_forward_proj="gated-gelu", **dataclasses.asdict(config.model.scratch)
        )
    else:
        shape = base_config(base)
    if config.system not in ("urg", "gen_fuser"):
        from urg.systems.backbone import encoder_of

        with torch.device("meta"):
            encoder: Any = encoder_of(shape)
        return encoder.num_parameters(), shape.hidden_size, shape.num_hidden_layers
    kind = backbone_type(shape, str(base))
    with torch.device("meta"):
        model = kind(kind.random(shape))
    return model.network.num_parameters(), model.width, model.depth


def memory_per_worker(
    config: TrainConfig, parameters: int, width: int, layers: int, encoder_tokens: int
) -> dict[str, float]:
    """GiB a worker, by part: weights, gradients, optimizer, activations. An estimate: plan for a quarter more.

    Weights and gradients in the training dtype; fp32 master and two moments (12 bytes a parameter) over the workers
    that ZeRO spreads them on. Activations: about 34 values a token, layer and width without checkpointing, 2 with it
    (Korthikanti et al. 2022); on a CPU, where inputs of products are made again (products.py), half of that, measured.
    """
    stage, workers = config.engine.zero_stage, config.engine.min_workers or config.engine.workers
    size = 2 if config.engine.dtype == "bf16" else 4
    saved = 2 if config.engine.activation_checkpointing else 34 if config.engine.use_gpu else 17
    return {
        "weights": parameters * size / (workers if stage == 3 else 1) / _GIB,
        "gradients": parameters * size / (workers if stage >= 2 else 1) / _GIB,
        "optimizer": 0.0
        if config.engine.offload_optimizer
        else parameters * 12 / (workers if stage >= 1 else 1) / _GIB,
        "activations": encoder_tokens * layers * width * saved * size / 2 / _GIB,
    }
