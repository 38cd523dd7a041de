"""The rankers that are not trained here: masked language models and reward models, against a slow derivation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from data_pipeline.errors import UserError
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.quality.regression import Reward
from tests.data_pipeline.tiny_models import save_chat_reward
from tests.urg.systems.tiny import ROWS, bert_tokenizer, config, roughen, row, save
from urg.systems import Setup, build_systems
from urg.systems.mlm_scoring import MaskedScorer
from urg.systems.reward_model import rewards


def made(auto: Any, family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = auto.from_config(config(family, len(bert_tokenizer()), **changes)).eval()
    roughen(model)
    return model


def slow_pll(model: Any, tokenizer: Any, text: str, limit: int) -> float:
    """One masked token at a time, logits over the whole text."""
    ids = tokenizer.encode(text, truncation=True, max_length=limit)
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
        logits = model(input_ids=torch.tensor([masked])).logits[0, place]
        total += float(logits.double().log_softmax(dim=0)[ids[place]])
    return total


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("chunk", [24, 10_000])
def test_pseudo_log_likelihoods_are_those_of_a_slow_loop(family: str, chunk: int) -> None:
    model, tokenizer = made(AutoModelForMaskedLM, family), bert_tokenizer()
    scorer = MaskedScorer(model, tokenizer, text_tokens=7, chunk_tokens=chunk)
    with torch.inference_mode():
        for example, scores in zip(ROWS, scorer.scores(ROWS), strict=True):
            for text, score in zip(example.texts, scores, strict=True):
                if text.strip():
                    np.testing.assert_allclose(score, slow_pll(model, tokenizer, text, 9), rtol=1e-4, atol=1e-4)
                else:  # it has nothing to be unlikely, and must not win by that
                    assert score < min(scores[n] for n, other in enumerate(example.texts) if other.strip())


@pytest.mark.parametrize(("family", "labels", "positions"), [("bert", 1, 128), ("bert", 2, 128), ("deberta-v2", 1, 16)])
def test_rewards_are_those_of_each_pair_alone(family: str, labels: int, positions: int) -> None:
    """Whole: DeBERTa-v3 takes more tokens than its config has positions."""
    changes = {"num_labels": labels, "max_position_embeddings": positions}
    model, tokenizer = made(AutoModelForSequenceClassification, family, **changes), bert_tokenizer()
    reward = Reward(tokenizer, model, batch_tokens=40)
    with torch.inference_mode():
        for example, scores in zip(ROWS, rewards(reward, ROWS), strict=True):
            for text, score in zip(example.texts, scores, strict=True):
                question = f"{example.instruction}\n{example.input}"
                pair = tokenizer([question], [text], return_tensors="pt")  # alone, "" would be taken for no text at all
                logits = model(**pair).logits[0]
                assert score == pytest.approx(float(logits[0] if labels == 1 else logits[1] - logits[0]), abs=1e-5)


def test_a_decoder_with_a_chat_template_reads_turns() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} [SEP] {{ m['content'] }} [SEP] {% endfor %}"
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    own = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=128, pad_token_id=0, **shape)
    model = LlamaForSequenceClassification(own).eval()
    roughen(model)
    rows = [row("1", ["red", "green blue one"], instruction="what is")]
    with torch.inference_mode():
        (scores,) = rewards(Reward(tokenizer, model, batch_tokens=2048), rows)
        for text, score in zip(rows[0].texts, scores, strict=True):
            shown = f"user [SEP] what is\nto this [SEP] assistant [SEP] {text} [SEP] "
            ids = tokenizer(shown, add_special_tokens=False, return_tensors="pt").input_ids
            assert score == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=1e-5)


def test_a_reward_model_reranks_by_the_score_that_it_labels_with(tmp_path: Path) -> None:
    """Long rows too: a conversation keeps its end, which is where a decoder's reward is read."""
    folder = save_chat_reward(tmp_path)
    texts = ["dogs ran " * 60 + "see birds", "dogs ran " * 60 + "45", "the cat"]
    example = row("1", texts, instruction="the old bridge " * 30)
    setup = Setup("quality", (), folders={"reward_model": folder}, device="cpu")
    ((answer,),) = [each.answer([example]) for each in build_systems(setup)[0] if each.name == "reward_model"]
    assert answer is not None
    assert answer.scores is not None
    questions = [f"{example.instruction}\n{example.input}"] * len(texts)
    labels = Reward.load(MetricModel(folder))(questions, texts)
    np.testing.assert_allclose(answer.scores, labels, atol=1e-4)
    assert len(set(labels)) == len(texts)


def test_each_is_built_from_its_folder(tmp_path: Path) -> None:
    mlm = save(tmp_path / "mlm", made(AutoModelForMaskedLM, "bert"), bert_tokenizer())
    classifier = made(AutoModelForSequenceClassification, "bert", num_labels=1)
    reward = save(tmp_path / "reward", classifier, bert_tokenizer())
    setup = Setup("quality", (), folders={"mlm_scoring": str(mlm), "reward_model": str(reward)}, device="cpu")
    systems = {system.name: system for system in build_systems(setup)[0]}
    for name in ("mlm_scoring", "reward_model"):
        answers = systems[name].answer(ROWS)
        assert [answer is not None and answer.picked is not None for answer in answers] == [True] * 4


@pytest.mark.parametrize(
    ("system", "auto", "changes", "sentence"),
    [
        ("mlm_scoring", AutoModel, {}, "is not a masked language model: it lacks weights, cls"),
        ("reward_model", AutoModel, {}, "is not a sequence-classification model: it lacks weights, classifier"),
        ("reward_model", AutoModelForSequenceClassification, {"num_labels": 3}, "has 3 outputs"),
        ("mlm_scoring", None, {}, "cannot be loaded as a masked language model"),
    ],
)
def test_a_folder_that_holds_something_else_is_one_sentence(
    system: str, auto: Any, changes: dict[str, int], sentence: str, tmp_path: Path
) -> None:
    if auto is not None:
        save(tmp_path, made(auto, "bert", **changes), bert_tokenizer())
    with pytest.raises(UserError, match=sentence):
        build_systems(Setup("quality", (), folders={system: str(tmp_path)}, device="cpu"))
