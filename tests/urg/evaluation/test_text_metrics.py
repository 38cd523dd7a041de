"""Text metrics: each distinct pair is scored once, and a missing text or reference has no value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.quality import bleu, rouge
from urg.evaluation.text_metrics import TextMetrics, corpus_bleu, device_here
from urg.evaluation.value_store import ValueStore


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs that ROUGE was asked for."""
    asked: list[tuple[str, str]] = []
    original = rouge.rouge

    def spy(texts: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
        asked.extend(zip(texts, references, strict=True))
        return original(texts, references)

    monkeypatch.setattr(rouge, "rouge", spy)
    return asked


def test_equals_the_library_and_scores_each_pair_once(scored: list[tuple[str, str]]) -> None:
    metrics = TextMetrics()
    texts, references = ["a red cat", "a blue dog", "a red cat"], ["a red cat sat", "the dog", "a red cat sat"]
    first = metrics.values(texts, references)
    again = metrics.values(texts[::-1], references[::-1])
    assert scored == [("a red cat", "a red cat sat"), ("a blue dog", "the dog")]
    assert {name: values[::-1].tolist() for name, values in again.items()} == {n: v.tolist() for n, v in first.items()}
    assert first["rougeL"].tolist() == rouge.rouge(texts, references)["rougeL"]
    assert first["bleu"].tolist() == bleu.sentence_bleu(texts, references)


def test_missing_text_or_reference_has_no_value(scored: list[tuple[str, str]]) -> None:
    values = TextMetrics().values(["a cat", None, "a cat", ""], ["", "a cat", "a cat", "a cat"])
    assert np.isnan(values["rouge1"]).tolist() == [True, True, False, False]
    assert values["rouge1"][2:].tolist() == [
        1.0,
        0.0,
    ]  # an empty answer to a question that has one is wrong, not missing
    assert scored == [("a cat", "a cat"), ("", "a cat")]


def test_values_outlive_the_process(scored: list[tuple[str, str]], tmp_path: Path) -> None:
    texts, references = ["a red cat", "", "é\n"], ["a red cat sat", "the dog", "漢字"]
    first = TextMetrics(store=ValueStore(tmp_path)).values(texts, references)
    again = TextMetrics(store=ValueStore(tmp_path)).values(["new", *texts], ["the dog", *references])
    assert scored == [*zip(texts, references, strict=True), ("new", "the dog")]
    for name, values in first.items():
        np.testing.assert_array_equal(again[name][1:], values)  # NaN included: 漢字 has no ROUGE
    assert np.isnan(first["rougeL"]).tolist() == [False, False, True]
    damaged = next((tmp_path / "values").rglob("ROUGE*/*.parquet"))
    damaged.write_bytes(b"PAR1")
    assert TextMetrics(store=ValueStore(tmp_path)).values(texts, references)["rouge1"][0] == first["rouge1"][0]
    TextMetrics(store=ValueStore(tmp_path, fresh=True)).values(texts, references)
    assert scored[-3:] == list(zip(texts, references, strict=True))


def test_another_model_under_the_same_name_scores_anew(tmp_path: Path) -> None:
    model = tmp_path / "encoder"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    ValueStore(tmp_path).put(f"bertscore:{model}", [("a", "b")], {"bertscore": [0.5]})
    assert ValueStore(tmp_path).get(f"bertscore:{model}", [("a", "b"), ("ab", "")]) == [{"bertscore": 0.5}, None]
    (model / "weights").write_bytes(b"2")
    assert ValueStore(tmp_path).get(f"bertscore:{model}", [("a", "b")]) == [None]


def test_bertscore_is_missing_with_its_reason_without_an_encoder() -> None:
    metrics = TextMetrics()
    assert "bertscore" not in metrics.names
    assert "--bertscore_model" in metrics.missing["bertscore"]
    with pytest.raises(UserError, match="no encoder folder /no/such/encoder"):
        TextMetrics("/no/such/encoder")


def test_corpus_bleu_over_the_rows_that_have_both() -> None:
    texts, references = ["a red cat sat on the mat", None, "x"], ["a red cat sat on the mat", "y", ""]
    value = corpus_bleu(texts, references)
    assert value is not None
    assert value == bleu.corpus_bleu(texts[:1], references[:1])  # type: ignore[arg-type]
    assert corpus_bleu([None], ["y"]) is None


def test_bartscore_and_bleurt_are_asked_of_their_models(monkeypatch: pytest.MonkeyPatch) -> None:
    bartscore = pytest.importorskip("data_pipeline.quality.bartscore")
    regression = pytest.importorskip("data_pipeline.quality.regression")
    for module, name, value in ((bartscore, "BartScore", -2.5), (regression, "Bleurt", 0.5)):
        made = lambda model, value=value: lambda texts, references: [value + len(model.name)] * len(texts)  # noqa: E731
        monkeypatch.setattr(module, name, made)
    metrics = TextMetrics(bartscore_model="bart", bleurt_model="b")
    values = metrics.values(["x", None], ["y", "y"])
    assert values["bartscore"][0] == 1.5
    assert values["bleurt"][0] == 1.5
    assert np.isnan(values["bleurt"][1])
    assert set(metrics.missing) == {"bertscore"}


def test_metrics_are_computed_where_this_process_is_not_where_the_actors_are() -> None:
    assert device_here("cpu", workers=0) == "cpu"
    assert device_here("cuda:7", workers=2) == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="cannot be used here"):
        device_here("cuda:7", workers=0)
