"""URG on a backbone that is no T5, through its task: a BERT-like folder as the base of a run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSet
from tests.preparing import prepare_without_ray
from tests.urg.backbones.tiny import bart, save_bert
from urg.config import TrainConfig
from urg.ensemble import Ensemble
from urg.objective import weighted_sum
from urg.training.estimate import describe, model_size
from urg.training.plan import require_base
from urg.training.task import Share, build_task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of the sample's language."""
    from data_pipeline.sample.corpus import generate_rows

    rows = list(generate_rows("train", 8))
    texts = [row["instruction"] for row in rows] + [row["output"] for row in rows]
    return save_bert(tmp_path_factory.mktemp("bert"), texts)


@pytest.fixture(scope="module")
def shards(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows of the sample in the BERT's tokens, made without Ray."""
    from data_pipeline.config import PrepareConfig, SampleSize

    output = str(tmp_path_factory.mktemp("data"))
    return prepare_without_ray(PrepareConfig(output=output, tokenizer=str(bert), sample=SampleSize(8, 2, 2, 0)))


@pytest.fixture
def config(bert: Path, make_config: Callable[..., TrainConfig]) -> TrainConfig:
    return make_config(model__base=bert, model__dropout=0.0, loss__rank_loss="listnet", loss__rank_scale="log")


def test_the_shards_hold_what_the_encoder_reads(shards: Path, config: TrainConfig) -> None:
    """The opening token included."""
    opened = ShardSet.open(shards)
    split, task = opened.split("train"), build_task(config, opened)
    batch = task.batch(Share(split[:4], np.arange(4), 1, 0), CPU).batch
    assert batch.tokens_S[0] == opened.template.opening_id == opened.tokenizer().cls_token_id
    assert [sum(row) for row in batch.layout.lengths] == split.encoder_tokens[:4].tolist()
    real, computed = task.tokens(task.batch(Share(split[:4], np.arange(4), 1, 0), CPU))
    assert 0 < real <= computed


def test_a_few_rows_are_learnt_and_exported(shards: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Both halves train, the cross-attention too; what is saved loads and writes what the task wrote."""
    opened = ShardSet.open(shards)
    task, split, rows = build_task(config, opened), opened.split("train"), np.arange(2)
    examples, losses = split[:2], []
    before = {name: p.detach().clone() for name, p in task.module.named_parameters()}
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=5e-3, weight_decay=0.0)
    for step in range(1, 41):
        batch = task.batch(Share(examples, rows, step, 0), CPU)
        optimizer.zero_grad()
        loss = weighted_sum(task.terms(task.module, batch, task.counts(split, rows)), task.weights)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    unchanged = {name for name, p in task.module.named_parameters() if torch.equal(p, before[name])}
    assert all("cross" in name and "key.bias" in name for name in unchanged), "a key's bias drops out of the softmax"
    task.module.eval()
    with torch.inference_mode():
        judged = task.judge(examples, CPU)
    task.save(tmp_path, {name: p.detach().clone() for name, p in task.module.named_parameters()}, 40)
    ensemble = Ensemble.from_pretrained(tmp_path)
    for example, one in zip(examples, judged, strict=True):
        fused = ensemble.rank_and_fuse(
            example.instruction, example.texts, example.input, num_beams=1, max_new_tokens=config.eval.max_new_tokens
        )
        assert fused.text == one.text
        assert fused.ranking.scores == pytest.approx(one.scores, rel=1e-4)


def test_a_dry_run_counts_its_parameters(config: TrainConfig, shards: Path) -> None:
    opened = ShardSet.open(shards)
    assert "parameters" in describe(dataclasses.replace(config, dry_run=True))
    parameters, width, depth = model_size(config, 0)
    module = build_task(config, opened).module
    added = len(opened.tokenizer()) - module.network.config.encoder.vocab_size
    assert (width, depth) == (32, 4)
    assert added == 0
    rows = 2 * (2 * width) + 2  # <question> and <response>, in two embeddings and the head's bias
    assert parameters == sum(p.numel() for p in module.parameters()) - rows


def test_shards_of_another_tokenizer_are_refused(config: TrainConfig, shards: Path, tmp_path: Path) -> None:
    """A BART pads with 1 and ends with 2."""
    bart().save_pretrained(tmp_path)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, base=str(tmp_path)))
    with pytest.raises(UserError, match="prepared by a tokenizer that is not that of"):
        build_task(other, ShardSet.open(shards))


def test_shards_from_before_there_was_an_opening_token_are_refused(config: TrainConfig, shards: Path) -> None:
    opened = ShardSet.open(shards)
    opened.template = dataclasses.replace(opened.template, opening_id=None)
    with pytest.raises(UserError, match="by an older version for another template: prepare it again"):
        build_task(config, opened)


def test_shards_of_texts_beyond_the_positions_are_refused(
    config: TrainConfig, shards: Path, bert: Path, tmp_path: Path
) -> None:
    short = save_bert(tmp_path, ["a few words"], max_position_embeddings=100)
    for file in bert.glob("*token*"):
        shutil.copy(file, short)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, base=str(short)))
    with pytest.raises(UserError, match="a candidate with its question is 261 tokens, and the model has positions"):
        build_task(other, ShardSet.open(shards))


def test_an_architecture_that_urg_cannot_be_made_of_is_refused_before_ray_starts(
    config: TrainConfig, tmp_path: Path
) -> None:
    DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=1, hidden_dim=8)).save_pretrained(
        tmp_path
    )
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, base=str(tmp_path)))
    with pytest.raises(UserError, match="is a distilbert; URG takes"):
        require_base(other)
    require_base(config)
