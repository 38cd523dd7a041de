"""Setting up one worker process: threads, seeds, logging, and the model that it trains."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
import warnings

import torch

from data_pipeline.shards import ShardSet
from urg.config import TrainConfig
from urg.model import URG, Settings
from urg.training.plan import base_model


def prepare_process(config: TrainConfig) -> None:
    """Threads and quiet libraries; called once, before anything else in a worker."""
    if not config.engine.use_gpu:
        torch.set_num_threads(config.engine.cpus_per_worker)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(deepspeed|torch|transformers)\b.*")


def seed_everything(*key: int) -> None:
    """Seed torch, on CPU and GPU, by a key such as (seed, step, worker, micro-batch): no state to save, exact on
    resume."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "big") >> 1)


def build_model(config: TrainConfig, shards: ShardSet) -> URG:
    """The model to train: the configured base, or random weights of the configured shape, for the shards' tokenizer.

    Weights are equal on all workers, for they depend on the seed alone.
    """
    seed_everything(config.seed)
    lengths, vocab_size = shards.lengths, len(shards.tokenizer())
    settings = Settings(
        k=config.model.k,
        question_tokens=lengths.question,
        response_tokens=lengths.response,
        target_tokens=lengths.target,
        label=config.data.label,
        generated_data=bool(shards.manifest["generated"]),
    )
    base = base_model(config)
    if base is None:
        model = URG.from_scratch(vocab_size, settings, **dataclasses.asdict(config.model.scratch))
    else:
        model = URG.from_pretrained(base)
        model.settings = settings
        model.resize_to(vocab_size)
    # Under ZeRO-3 each call of a layer is collective, so that all workers must make the same number of them.
    model.chunk_tokens = sys.maxsize if config.engine.zero_stage == 3 else config.model.chunk_tokens
    set_dropout(model, config.model.dropout)
    if config.engine.activation_checkpointing:
        model.t5.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def set_dropout(model: URG, rate: float) -> None:
    """Set the dropout rate of every layer, and in the configuration that is saved with the model."""
    model.t5.config.dropout_rate = rate
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):  # T5Attention keeps a number
            setattr(module, "dropout", rate)  # noqa: B010
