from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.quality.regression import Bleurt, Reward
from tests.data_pipeline.tiny_models import TEMPLATE, save_chat_reward, save_regressor

TEXTS = ["the cat sat on a mat", "dogs", "birds near the old stone bridge ran 3 miles to see a cat .", "12 45"]
OTHERS = ["a cat sat", "the dogs ran to see the old bridge .", "birds", "mat"]


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_regressor(tmp_path_factory.mktemp("bleurt"))


@pytest.fixture(scope="module")
def chat_reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_reward(tmp_path_factory.mktemp("reward"))


def alone(folder: str, *texts: str, **options: Any) -> float:
    """The model's output for one input without padding; of two outputs the second less the first."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", **options)
        logits = model(**inputs).logits[0]
        return float(logits[-1] - (logits[0] if len(logits) == 2 else 0))


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_bleurt_reads_reference_then_candidate_and_padding_changes_nothing(regressor: str, batch_tokens: int):
    expected = [alone(regressor, other, text) for text, other in zip(TEXTS, OTHERS, strict=True)]
    assert Bleurt(MetricModel(regressor, batch_tokens=batch_tokens))(TEXTS, OTHERS) == pytest.approx(expected, abs=1e-5)
    assert Bleurt(MetricModel(regressor))([], []) == []


def test_bleurt_cuts_the_longer_text_where_it_is_told_to(regressor: str):
    expected = [
        alone(regressor, other, text, truncation="longest_first", max_length=9)
        for text, other in zip(TEXTS, OTHERS, strict=True)
    ]
    assert Bleurt(MetricModel(regressor, max_tokens=9))(TEXTS, OTHERS) == pytest.approx(expected, abs=1e-5)
    whole = Bleurt(MetricModel(regressor))(TEXTS, OTHERS)
    assert whole != pytest.approx(expected, abs=1e-3)
    assert Bleurt(MetricModel(regressor, max_tokens=900))(TEXTS, OTHERS) == whole  # its own limit is 64


def test_reward_reads_prompt_then_answer(regressor: str):
    expected = [alone(regressor, prompt, answer) for prompt, answer in zip(TEXTS, OTHERS, strict=True)]
    assert Reward.load(MetricModel(regressor))(TEXTS, OTHERS) == pytest.approx(expected, abs=1e-5)


def test_a_reward_with_two_outputs_is_the_log_odds_of_the_second(tmp_path: Path):
    folder = save_regressor(tmp_path, outputs=2)
    expected = [alone(folder, prompt, answer) for prompt, answer in zip(TEXTS, OTHERS, strict=True)]
    assert Reward.load(MetricModel(folder))(TEXTS, OTHERS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_reward_takes_the_chat_template_and_the_last_token(chat_reward: str, batch_tokens: int):
    """This model has no pad_token_id, its texts end in </s>: padding must be told from both."""
    assert TEMPLATE.endswith("</s> {% endfor %}")
    texts = [f"user {p} </s> assistant {a} </s> " for p, a in zip(TEXTS, OTHERS, strict=True)]
    expected = [alone(chat_reward, text, add_special_tokens=False) for text in texts]
    assert Reward.load(MetricModel(chat_reward, batch_tokens=batch_tokens))(TEXTS, OTHERS) == pytest.approx(
        expected, abs=1e-5
    )


def test_long_pairs_are_cut(regressor: str):
    scores = Reward.load(MetricModel(regressor))(["cat " * 300, "cat " * 300], ["dogs", "birds"])
    assert scores[0] != scores[1]


@pytest.mark.parametrize(("positions", "words"), [(64, 150), (4096, 3000), (4096, 4100)])
def test_a_long_conversation_keeps_its_end_and_all_that_the_model_takes(tmp_path: Path, positions: int, words: int):
    folder = save_chat_reward(tmp_path, positions)
    prompt, answer = "the cat sat " * (words // 6), "dogs ran near " * (words // 6) + "birds"
    whole = f"user {prompt} </s> assistant {answer} </s>".split()
    assert (len(whole) > positions) == (words != 3000)
    expected = alone(folder, " ".join(whole[-positions:]), add_special_tokens=False)
    assert Reward.load(MetricModel(folder))([prompt], [answer]) == pytest.approx([expected], abs=1e-4)
    assert alone(folder, " ".join(whole[: positions // 2]), add_special_tokens=False) != pytest.approx(
        expected, abs=1e-3
    )


def test_models_of_another_kind_are_refused(tmp_path: Path, regressor: str):
    from transformers import AutoTokenizer, BertConfig, BertModel

    with pytest.raises(UserError, match="has 3 outputs; name one with a single one"):
        Bleurt(MetricModel(save_regressor(tmp_path / "three", outputs=3)))
    with pytest.raises(UserError, match=r"three has 3 outputs; name one with a single one, or with two"):
        Reward.load(MetricModel(str(tmp_path / "three")))
    bare = tmp_path / "encoder"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**sizes, num_labels=1)).save_pretrained(bare)
    AutoTokenizer.from_pretrained(regressor).save_pretrained(bare)
    with pytest.raises(UserError, match=r"bleurt model .* \(it lacks the weights classifier"):
        Bleurt(MetricModel(str(bare)))
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "config.json").write_text('{"model_type": "bleurt"}')
    with pytest.raises(UserError, match=r"cannot be loaded .*bleurt"):
        Bleurt(MetricModel(str(tmp_path / "port")))
