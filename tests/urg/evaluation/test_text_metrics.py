"""Text metrics: each distinct pair is scored once, and a missing text or reference has no value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from data_pipeline.errors import UserError
from data_pipeline.quality import bleu, rouge
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.quality.regression import Bleurt
from tests.data_pipeline.tiny_models import WORDS, save_bart, save_regressor
from urg.evaluation.text_metrics import PairScorer, TextMetrics, corpus_bleu
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
    damaged = next((tmp_path / "values").rglob("rouge*/*.parquet"))
    damaged.write_bytes(b"PAR1")
    assert TextMetrics(store=ValueStore(tmp_path)).values(texts, references)["rouge1"][0] == first["rouge1"][0]
    TextMetrics(store=ValueStore(tmp_path, fresh=True)).values(texts, references)
    assert scored[-3:] == list(zip(texts, references, strict=True))


def test_another_model_under_the_same_name_scores_anew(tmp_path: Path) -> None:
    model = tmp_path / "encoder"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    scorer = ("bertscore", str(model))
    ValueStore(tmp_path).put(scorer, [("a", "b")], {"bertscore": [0.5]})
    assert ValueStore(tmp_path).get(scorer, [("a", "b"), ("ab", "")]) == [{"bertscore": 0.5}, None]
    (model / "weights").write_bytes(b"2")
    assert ValueStore(tmp_path).get(scorer, [("a", "b")]) == [None]


def test_a_value_is_of_the_models_settings_too(tmp_path: Path) -> None:
    folder = save_regressor(tmp_path / "bleurt")
    texts, references, found = ["the cat sat on a mat and dogs ran"], ["birds near the old stone bridge"], []
    for tokens in (9, None, 9):
        model = MetricModel(folder, max_tokens=tokens)
        values = TextMetrics({"bleurt": model}, store=ValueStore(tmp_path)).values(texts, references)
        assert values["bleurt"].tolist() == Bleurt(model)(texts, references)
        found.append(values["bleurt"][0])
    assert found[0] != found[1]
    weights = tmp_path / "bart_score.pth"
    scorer = PairScorer("bartscore", MetricModel("some/hub-id", weights=str(weights)))
    weights.write_bytes(b"1")
    ValueStore(tmp_path).put(scorer.key, [("a", "b")], {"bartscore": [-1.0]})
    assert ValueStore(tmp_path).get(scorer.key, [("a", "b")]) == [{"bartscore": -1.0}]
    weights.write_bytes(b"other")
    assert ValueStore(tmp_path).get(scorer.key, [("a", "b")]) == [None]


def test_bertscore_is_missing_with_its_reason_without_an_encoder() -> None:
    metrics = TextMetrics()
    assert "bertscore" not in metrics.names
    assert "--bertscore_model" in metrics.missing["bertscore"]
    with pytest.raises(UserError, match="no encoder folder /no/such/encoder"):
        TextMetrics({"bertscore": MetricModel("/no/such/encoder")})


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
    metrics = TextMetrics({"bartscore": MetricModel("bart"), "bleurt": MetricModel("b")})
    values = metrics.values(["x", None], ["y", "y"])
    assert values["bartscore"][0] == 1.5
    assert values["bleurt"][0] == 1.5
    assert np.isnan(values["bleurt"][1])
    assert set(metrics.missing) == {"bertscore"}


def some_pairs(count: int) -> tuple[list[str | None], list[str]]:
    """Distinct texts of some words beside references, with blank, missing and odd ones among them."""
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size=n % 9 + 1)) + f" {n}" for n in range(count)]
    references = [" ".join(generator.choice(WORDS, size=n % 7 + 1)) for n in range(count)]
    return ["", None, "cat", "mat", *texts], ["the cat", "dogs", " ", "漢字", *references]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, MetricModel]:
    """A tiny model for each metric that has one."""
    bart, regressor = save_bart(tmp_path / "bart"), save_regressor(tmp_path / "regressor")
    return {
        "bertscore": MetricModel(regressor),
        "bartscore": MetricModel(bart, batch_tokens=64),
        "bleurt": MetricModel(regressor, max_tokens=12),
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_actors_score_as_this_process_does_and_go_on_after_a_kill(
    ray_started: None, models: dict[str, MetricModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urg.evaluation.text_metrics.PAIRS_PER_CALL", 40)
    texts, references = some_pairs(98)
    here = TextMetrics(models).values(texts, references)
    assert np.isnan(here["rougeL"]).tolist() == [False, True, True, True] + [False] * 98

    def killed(what: str, done: int, of: int) -> None:
        if what == "bartscore":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TextMetrics(models, killed, ValueStore(tmp_path), workers=2).values(texts, references)
    seen: list[tuple[str, int, int]] = []
    metrics = TextMetrics(models, lambda *step: seen.append(step), ValueStore(tmp_path), workers=2)
    there = metrics.values(texts, references)
    assert seen == [
        ("bartscore", 40, 60), ("bartscore", 60, 60), ("bleurt", 40, 100), ("bleurt", 80, 100), ("bleurt", 100, 100),
    ]  # fmt: skip
    for name, values in here.items():
        ulp = 1e-6 if name == "bertscore" else 0  # bert-score's batches go by the order of a set of strings
        np.testing.assert_allclose(there[name], values, rtol=ulp)
    assert metrics.values(texts, references).keys() == here.keys()
    assert len(seen) == 5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_breaks_in_an_actor_is_one_sentence(
    ray_started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Path(save_regressor(tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"The bleurt model .*broken cannot be loaded"):
        TextMetrics({"bleurt": MetricModel(str(broken))}, workers=2).values(["a"], ["b"])

    def dead(*_: Any) -> Any:
        raise ActorDiedError

    monkeypatch.setattr("data_pipeline.plan.on_actors", dead)
    with pytest.raises(UserError, match=r"rouge has lost its actors \(.*lower --metric_batch_tokens or --workers"):
        TextMetrics(workers=2).values(["a"], ["b"])


def test_actors_models_are_looked_at_beforehand_and_not_loaded(
    models: dict[str, MetricModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairScorer, "load", None)
    TextMetrics(models, workers=2)
    with pytest.raises(UserError, match="There is no model folder /no/such for bartscore"):
        TextMetrics({"bartscore": MetricModel("/no/such")}, workers=2)
    with pytest.raises(UserError, match="no AutoModelForSeq2SeqLM is known for models of type bert"):
        TextMetrics({"bartscore": models["bleurt"]}, workers=2)
    absent = MetricModel(models["bartscore"].name, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match=r"no file .*absent\.pth of weights; see --bartscore_weights"):
        TextMetrics({"bartscore": absent}, workers=2)
