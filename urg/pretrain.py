"""Pre-train the small base model that the sample is fine-tuned from: `python -m urg.pretrain --output DIR`.

A T5 from random weights learns on generated text to copy and to restore damaged sentences, never on a row of the sample
(data_pipeline/sample/pretraining.py): what Flan-T5 is to the real runs, in miniature. One process, CPU or GPU, plain
PyTorch; the model that ships with the project was made by this command with its defaults.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from urg.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from data_pipeline.sample.pretraining import PretrainingExample
    from data_pipeline.tokenization import Template
    from urg.batching import Batch
    from urg.model import URG


def main(config: PretrainConfig) -> None:
    """Pre-train a small T5 on generated text by copying and restoring damaged sentences."""
    import torch

    from data_pipeline.sample.pretraining import pretraining_examples, ranking_examples
    from data_pipeline.tokenization import Template, load_tokenizer
    from data_pipeline.train_tokenizer import save_tokenizer
    from urg.devices import moved
    from urg.model import URG, Settings

    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {config.output} ({error.strerror}): choose another --output.") from error
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    tokenizer: Any = load_tokenizer(config.start) if config.start else _tokenizer(config)
    template = Template.from_tokenizer(tokenizer)
    shape = asdict(config.shape)
    if config.start:
        model = URG.from_pretrained(config.start)
    else:
        model = URG.from_scratch(len(tokenizer), Settings(generated_data=True), **shape, dropout_rate=0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    examples = ranking_examples(config.seed) if config.rank else pretraining_examples(config.seed)
    started, running = time.perf_counter(), torch.zeros((), device=device)
    for step in range(1, config.steps + 1):
        optimizer.param_groups[0]["lr"] = config.lr * _schedule(step, config.steps)
        batch = _collate(list(islice(examples, config.batch)), tokenizer, template, config.rank)
        loss = _loss(model, moved(batch, device), config.rank)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.detach()
        if step % config.log_every == 0:
            spent = time.perf_counter() - started
            print(
                f"step {step}/{config.steps}  loss {float(running) / config.log_every:.4f}  {spent:.0f} s", flush=True
            )
            running.zero_()
    model.save_pretrained(config.output)
    save_tokenizer(tokenizer, config.output)
    print(f"base model: {config.output} ({sum(p.numel() for p in model.parameters()):,} parameters)")


def _tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """A tokenizer of the generated language, from questions and answers that no split of the sample can draw."""
    from random import Random

    from data_pipeline.sample.kinds import draw_task
    from data_pipeline.sample.models import MODELS
    from data_pipeline.train_tokenizer import train_tokenizer

    def texts() -> Iterator[str]:
        rng = Random(f"{config.seed}/vocabulary")
        for _ in range(5000):
            kind, task = draw_task("pretraining", rng)
            yield from (task.request, task.context, task.reference(), rng.choice(MODELS).answer(task, kind, rng))

    return train_tokenizer(texts(), config.vocab_size)


def _collate(
    examples: list[PretrainingExample], tokenizer: PreTrainedTokenizerFast, template: Template, rank: bool
) -> Batch:
    """Pre-training examples in the shape of URG's rows."""
    import numpy as np

    from data_pipeline.encoding import encode_texts
    from data_pipeline.quality.rouge import rouge
    from data_pipeline.shards import TokenizedExample
    from urg.batching import collate

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [ids for ids, _ in encode_texts(texts, tokenizer, 128)]

    passages, targets = encode([e.passage for e in examples]), encode([e.target for e in examples])
    responses = iter(encode([text for e in examples for text in e.responses]))
    rows = []
    for example, passage, target in zip(examples, passages, targets, strict=True):
        own = tuple(next(responses) for _ in example.responses)
        target = np.append(target, tokenizer.eos_token_id).astype(np.int32)
        names = tuple(str(i) for i in range(len(own)))
        scores = {"rougeL": np.array(rouge(example.responses, [example.target] * len(own))["rougeL"])} if rank else {}
        rows.append(
            TokenizedExample("", "", "", example.target, names, example.responses, scores, None, passage, own, target)
        )
    return collate(rows, template, "rougeL" if rank else None)


def _loss(model: URG, batch: Batch, rank: bool) -> Tensor:
    """Mean cross-entropy of the targets, given all sources; with `rank`, ListNet on the sources' damage added."""
    from urg.losses import rank_loss, token_cross_entropy

    hidden_SD = model.encode(batch.tokens_S, batch.layout)
    everything_BN, most = batch.layout.mask_BN, max(len(row) for row in batch.layout.lengths)
    (states_PD,) = model.backbone.teacher_force(
        hidden_SD, batch.layout, [everything_BN], most, batch.target_BT, batch.target_P
    )
    logits_PV = model.backbone.head(states_PD)
    restoring = token_cross_entropy(logits_PV, batch.real_targets).mean()
    if not rank:
        return restoring
    scores_BN = model.rank(hidden_SD, batch.layout)
    return restoring + rank_loss(scores_BN, batch.layout.tokens_BN, batch.quality_BN, "listnet", "log").mean()


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, round(0.05 * steps))
    return min(step / warmup, (steps - step + 1) / max(1, steps - warmup))


if __name__ == "__main__":
    run_command(main, PretrainConfig)
