from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.quality.bertscore import load_scorer
from data_pipeline.quality.model_folder import (
    MetricModel,
    fingerprint,
    load_model,
    own_limit,
    positions,
    require_model,
    token_limit,
)
from tests.data_pipeline.tiny_models import save_bart

KIND = "AutoModelForSeq2SeqLM"


def test_what_cannot_be_a_model_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(UserError, match=r"no model folder /no/such for bleurt; name a folder"):
        require_model("bleurt", "/no/such", KIND)
    with pytest.raises(UserError, match=r"is no model folder for bartscore: it has no config\.json"):
        require_model("bartscore", str(tmp_path), KIND)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no model folder"):
        require_model("bartscore", str(tmp_path / "file"), KIND)
    for content in ("", "{}", "[]", '{"model_type": "bleurt"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"The bartscore model .* cannot be loaded"):
            require_model("bartscore", str(tmp_path), KIND)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="no AutoModelForSeq2SeqLM is known for models of type bert"):
        require_model("bartscore", str(tmp_path), KIND)
    require_model("bertscore", str(tmp_path), "AutoModel")


@pytest.mark.timeout(100)
def test_a_hub_that_cannot_be_reached_is_one_sentence_and_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for what, ask in (
        ("the bartscore model nobody/no-such", lambda: require_model("bartscore", "nobody/no-such", KIND)),
        ("the BERTScore encoder no-such", lambda: load_scorer("no-such")),
    ):
        start = time.monotonic()
        with pytest.raises(
            UserError, match=f"Cannot load {what}: it is no local folder, and .* reached \\(.*refused\\); give"
        ):
            ask()
        assert time.monotonic() - start < 10
    assert "Retrying" not in caplog.text


def test_the_least_limit_of_length_counts():
    tokenizer, config = SimpleNamespace(model_max_length=10**30), SimpleNamespace(max_position_embeddings=514)
    assert token_limit(tokenizer, SimpleNamespace(**vars(config), model_type="roberta"), 1024) == 512
    assert token_limit(tokenizer, SimpleNamespace(**vars(config), model_type="bert"), 1024) == 514
    assert token_limit(tokenizer, SimpleNamespace(), 1024) == 1024
    assert token_limit(SimpleNamespace(model_max_length=77), SimpleNamespace(), 1024) == 77
    assert own_limit(tokenizer, SimpleNamespace(**vars(config), model_type="bert")) == 514
    assert own_limit(tokenizer, SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": True}, 512),
        ({"model_type": "t5"}, None),
        ({"model_type": "mt5", "max_position_embeddings": 512}, None),
        ({"model_type": "llama", "max_position_embeddings": 131072}, 131072),
        ({"model_type": "mamba"}, None),
    ],
)
def test_a_model_of_relative_positions_takes_any_length(facts: dict[str, Any], expected: int | None):
    config = SimpleNamespace(**facts)
    assert positions(config) == expected
    assert own_limit(SimpleNamespace(model_max_length=10**30), config) == expected
    assert own_limit(SimpleNamespace(model_max_length=100), config) == 100


def test_a_fingerprint_is_of_the_content(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    one, two = (fingerprint(str(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "model.safetensors").write_text("x")
    assert fingerprint(str(tmp_path / "two")) != one
    assert fingerprint(str(tmp_path / "one"), str(tmp_path / "two" / "model.safetensors")) != one
    assert fingerprint("some/hub-id") != fingerprint("other/hub-id")


@pytest.mark.parametrize("damage", [b"", b"no weights at all"])
def test_damaged_weights_are_told_as_such(tmp_path: Path, damage: bytes):
    from transformers import AutoModelForSeq2SeqLM

    folder = save_bart(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(UserError, match=r"The bartscore model .* cannot be loaded \("):
        load_model("bartscore", AutoModelForSeq2SeqLM, MetricModel(folder))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(damage)
    with pytest.raises(UserError, match=r"The bartscore model .* cannot be loaded \("):
        load_model("bartscore", AutoModelForSeq2SeqLM, MetricModel(folder))
