"""An encoder's folder as the start of an encoder-decoder: what it takes over, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertModel

from data_pipeline.errors import UserError
from data_pipeline.tokenization import load_tokenizer
from tests.urg.backbones.tiny import save_bert
from urg.ensemble import Ensemble, Query
from urg.model import URG, Settings

TEXTS = ["Paris is the capital of France.", "I cannot answer that question.", "7 is a prime number", "France"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert", TEXTS)


def test_both_halves_start_from_the_encoders_weights(folder: Path) -> None:
    pretrained, network = AutoModel.from_pretrained(str(folder)), URG.from_pretrained(folder).network
    expected = {name: tensor for name, tensor in pretrained.state_dict().items() if not name.startswith("pooler")}
    for half in (network.encoder, network.decoder.bert):
        own = half.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())
        assert own["embeddings.word_embeddings.weight"] is not expected["embeddings.word_embeddings.weight"]
    assert network.encoder.pooler is None
    for layer in network.decoder.bert.encoder.layer:
        copied, source = layer.crossattention.state_dict(), layer.attention.state_dict()
        assert copied.keys() == source.keys()
        assert all(torch.equal(copied[name], source[name]) for name in source)
        assert layer.crossattention.self.key.weight is not layer.attention.self.key.weight
    assert network.decoder.get_output_embeddings().weight is network.decoder.get_input_embeddings().weight


def test_a_head_that_the_folder_has_is_taken_too(folder: Path) -> None:
    masked = BertForMaskedLM(BertConfig(**AutoModel.from_pretrained(str(folder)).config.to_dict()))
    masked.save_pretrained(str(folder))
    network = URG.from_pretrained(folder).network
    dense = network.decoder.cls.predictions.transform.dense.weight
    assert torch.equal(dense, masked.cls.predictions.transform.dense.weight)


def test_the_special_tokens_are_the_tokenizers(folder: Path) -> None:
    backbone, tokenizer = URG.from_pretrained(folder).backbone, load_tokenizer(folder)
    assert backbone.start_id == tokenizer.cls_token_id
    assert backbone.end_ids == {tokenizer.sep_token_id}
    assert backbone.pad_id == tokenizer.pad_token_id
    assert backbone.longest == 512


def test_new_weights_depend_on_the_seed_alone(folder: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return URG.from_pretrained(folder).network.decoder.cls.predictions.transform.dense.weight

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_it_ranks_and_fuses_texts_and_saves(folder: Path, tmp_path: Path) -> None:
    """End to end: a frozen ensemble in fp32 and bf16, whose folder is loaded as an encoder-decoder's."""
    model, tokenizer, out = URG.from_pretrained(folder, k=2, target_tokens=6), load_tokenizer(folder), tmp_path / "urg"
    model.resize_to(len(tokenizer))
    model.save_pretrained(out)
    tokenizer.save_pretrained(str(out))
    assert URG.from_pretrained(out).settings == Settings(k=2, target_tokens=6)
    ensemble = Ensemble.from_pretrained(out)
    queries = [Query("Name it.", (TEXTS[0], TEXTS[1], "")), Query("Which?", (TEXTS[2],), "of these")]
    together = ensemble.rank_and_fuse_batch(queries, num_beams=2)
    for query, fused in zip(queries, together, strict=True):
        alone = ensemble.rank_and_fuse(query.instruction, query.candidates, query.input, num_beams=2)
        assert alone.text == fused.text
        assert alone.ranking.scores == pytest.approx(fused.ranking.scores, rel=1e-5)
        assert not {"[CLS]", "[SEP]", "[PAD]"} & set(fused.text.split())
    scores = Ensemble.from_pretrained(out, dtype="bf16").rank_batch(queries)[0].scores
    assert scores == pytest.approx(together[0].ranking.scores, rel=0.1)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        URG.from_pretrained(folder)


def test_a_folder_that_lacks_encoder_weights_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights"):
        URG.from_pretrained(folder)


def test_an_encoder_of_another_family_is_refused(tmp_path: Path) -> None:
    DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=1, hidden_dim=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match=r"is a distilbert.*\(bert, roberta"):
        URG.from_pretrained(tmp_path)
