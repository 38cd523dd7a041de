"""Folders: what is saved loads back as it was, and what cannot be loaded is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from data_pipeline.errors import UserError
from tests.urg.made_up import logits
from urg.layout import Layout
from urg.model import URG, Settings

FAMILIES = ["t5", "flan", "mt5", "byt5"]
SHAPE = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_heads": 3}
Pack = Callable[[list[list[Tensor]]], tuple[Tensor, Layout]]


def distinct(model: URG) -> bool:
    return model.t5.lm_head.weight is not model.t5.shared.weight


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def outputs(pack: Pack, queries: list[list[Tensor]], targets: Tensor) -> Callable[[URG], tuple[Tensor, Tensor]]:
    """A model's logits and scores on the tiny queries."""

    def run(model: URG) -> tuple[Tensor, Tensor]:
        output = model.eval()(*pack(queries), targets)
        return logits(output)[1].detach(), output.scores_BN.detach()

    return run


def assert_same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("given_weights", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_back_as_it_was(
    family: str, given_weights: bool, build: Any, outputs: Any, tmp_path: Path
) -> None:
    """given_weights: as after a training with DeepSpeed, where tied tensors come as separate copies."""
    model = build(family, 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()} if given_weights else None
    model.save_pretrained(tmp_path, weights)
    loaded = URG.from_pretrained(tmp_path)
    assert_same(outputs(loaded), outputs(model))
    assert distinct(loaded) == distinct(model) == (family != "t5")
    assert loaded.t5.decoder.embed_tokens.weight is loaded.t5.encoder.embed_tokens.weight is loaded.t5.shared.weight
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert_same(outputs(URG.from_pretrained(again)), outputs(model))


@pytest.mark.parametrize("tied", [True, False])
def test_given_weights_are_written_and_not_the_modules_own(tied: bool, outputs: Any, tmp_path: Path) -> None:
    trained, empty = (URG.from_scratch(40, Settings(k=2), tie_word_embeddings=tied, **SHAPE) for _ in range(2))
    empty.save_pretrained(tmp_path, {name: tensor.clone() for name, tensor in trained.state_dict().items()})
    assert_same(outputs(URG.from_pretrained(tmp_path)), outputs(trained))


def test_from_scratch_ties_the_head_only_where_asked(outputs: Any) -> None:
    tied, untied = (URG.from_scratch(40, Settings(), tie_word_embeddings=tie, **SHAPE) for tie in (True, False))
    assert (distinct(tied), distinct(untied)) == (False, True)
    assert (tied.t5.config.scale_decoder_outputs, untied.t5.config.scale_decoder_outputs) == (True, False)
    before = untied.t5.shared.weight.detach().clone()
    with torch.no_grad():
        untied.t5.lm_head.weight.zero_()
    assert torch.equal(untied.t5.shared.weight, before)
    assert not outputs(untied)[0].any()


@pytest.mark.parametrize("tied", [True, False])
def test_a_hub_folder_of_either_t5_version_loads(tied: bool, build: Any, outputs: Any, tmp_path: Path) -> None:
    """There, v1.1 says tie_word_embeddings: false, v1.0 nothing, and neither has scale_decoder_outputs or urg.json."""
    model = build("t5" if tied else "flan", 3)
    model.save_pretrained(tmp_path)
    (tmp_path / "urg.json").unlink()

    def as_on_the_hub(config: dict[str, Any]) -> None:
        del config["scale_decoder_outputs"], config["tie_word_embeddings"]
        config.update({} if tied else {"tie_word_embeddings": False})

    edit(tmp_path / "config.json", as_on_the_hub)
    loaded = URG.from_pretrained(tmp_path)
    assert loaded.settings == Settings()
    assert_same(outputs(loaded), outputs(model))
    loaded.save_pretrained(tmp_path)
    assert_same(outputs(URG.from_pretrained(tmp_path)), outputs(model))


def test_settings_are_stored_and_overridden(tmp_path: Path) -> None:
    settings = Settings(
        4, question_tokens=9, response_tokens=8, target_tokens=7, label="x", generated_data=True, steps=5
    )
    URG.from_scratch(40, settings, **SHAPE).save_pretrained(tmp_path)
    assert URG.from_pretrained(tmp_path).settings == settings
    assert URG.from_pretrained(tmp_path, k=2, label=None).settings.k == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_resizing_adds_rows_and_changes_no_other(family: str, build: Any, outputs: Any, tmp_path: Path) -> None:
    """ByT5 has 384 ids for 259 + 125 tokens: with the two special tokens the tokenizer has more."""
    model = build(family)
    logits, scores = outputs(model)
    size = model.t5.config.vocab_size
    model.resize_to(size + 2)
    grown = outputs(model)
    assert_same((grown[0][..., :size], grown[1]), (logits, scores))
    assert grown[0].shape[-1] == model.t5.config.vocab_size == size + 2
    assert len(model.t5.shared.weight) == len(model.t5.lm_head.weight) == model.t5.lm_head.out_features == size + 2
    assert distinct(model) == (family != "t5")
    if family != "t5":
        mean_BT1 = logits.mean(-1, keepdim=True)
        torch.testing.assert_close(grown[0][..., size:], mean_BT1.expand(-1, -1, 2), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert_same(outputs(URG.from_pretrained(tmp_path)), grown)


@pytest.mark.parametrize("size", [1, 39, 40])
def test_a_smaller_tokenizer_changes_nothing(size: int, build: Any) -> None:
    model = build()
    before = model.t5.shared.weight
    model.resize_to(size)
    assert model.t5.shared.weight is before
    assert model.t5.config.vocab_size == 40


# --------------------------------------------------------------------------------------------------------------------
# What cannot be loaded


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def missing_weights(folder: Path) -> None:
    """A weight that is not there must not become random numbers."""
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.block.0.layer.1.EncDecAttention.q.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(d_ff=25))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"d_model"')


def another_kind(folder: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertModel(config).save_pretrained(folder)


def broken_settings(folder: Path) -> None:
    (folder / "urg.json").write_text('{"k": 3')


def unknown_setting(folder: Path) -> None:
    edit(folder / "urg.json", lambda settings: settings.update(colour="red"))


SPOILT = [without_weights, truncated_weights, missing_weights, other_shape, broken_config, another_kind]


@pytest.mark.parametrize("spoil", [*SPOILT, broken_settings, unknown_setting])
def test_a_folder_that_cannot_be_loaded_is_named_in_one_sentence(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    URG.from_scratch(40, Settings(), **SHAPE).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        URG.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        URG.from_pretrained(tmp_path / "nothing")
