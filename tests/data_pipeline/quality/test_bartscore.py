from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.quality.bartscore import BartScore
from data_pipeline.quality.model_folder import MetricModel
from tests.data_pipeline.tiny_models import save_bart

PREDICTIONS = ["the cat sat on a mat", "dogs", "birds near the old stone bridge ran 3 miles to see a cat .", "12 45"]
REFERENCES = ["a cat sat", "the dogs ran to see the old bridge .", "birds", "the cat and dogs sat on a mat near 45"]


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bart(tmp_path_factory.mktemp("bart"))


def by_definition(prediction: str, reference: str, folder: str) -> float:
    """One pair without padding, token by token: the decoder is run anew for each token of the reference."""
    from transformers import AutoTokenizer, BartForConditionalGeneration

    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        BartForConditionalGeneration.from_pretrained(folder).eval(),
    )
    source, target = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (prediction, reference))
    read, log_p = [model.config.decoder_start_token_id], []
    for token in target[0].tolist():
        with torch.no_grad():
            logits = model(input_ids=source, decoder_input_ids=torch.tensor([read])).logits[0, -1]
        log_p.append(float(torch.log(torch.softmax(logits.double(), 0)[token])))
        read.append(token)
    return sum(log_p) / len(log_p)


def test_equals_the_definition_in_any_batch(bart: str):
    expected = [by_definition(*pair, bart) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert len({round(value, 3) for value in expected}) == len(expected)
    for batch_tokens in (1, 24, 10_000):  # alone, in small batches, all padded to the longest
        score = BartScore(MetricModel(bart, batch_tokens=batch_tokens))
        assert score(PREDICTIONS, REFERENCES) == pytest.approx(expected, abs=1e-5)


def test_the_library_s_own_loss_is_its_negative(bart: str):
    """labels= computes the mean cross-entropy over the target: what the paper's code returns, negated."""
    from transformers import AutoTokenizer, BartForConditionalGeneration

    tokenizer, model = AutoTokenizer.from_pretrained(bart), BartForConditionalGeneration.from_pretrained(bart).eval()
    source, target = tokenizer(PREDICTIONS[0], return_tensors="pt"), tokenizer(REFERENCES[0], return_tensors="pt")
    loss = model(**source, labels=target["input_ids"]).loss
    assert BartScore(MetricModel(bart))(PREDICTIONS[:1], REFERENCES[:1]) == pytest.approx([-loss.item()], abs=1e-5)


def test_direction_is_from_the_text_to_the_reference(bart: str):
    score = BartScore(MetricModel(bart))
    assert score(["the cat"], ["dogs ran"]) != pytest.approx(score(["dogs ran"], ["the cat"]), abs=1e-3)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_other_weights_replace_the_folders_own(bart: str, tmp_path: Path, kind: str):
    from safetensors.torch import save_file
    from transformers import BartForConditionalGeneration

    other = save_bart(tmp_path / "other", seed=1)
    state = BartForConditionalGeneration.from_pretrained(other).state_dict()
    if kind == "torch":
        file = tmp_path / "bart_score.pth"
        torch.save(state, file)
    else:
        file = tmp_path / "weights.safetensors"
        tied = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        save_file({name: tensor for name, tensor in state.items() if name not in tied}, file)
    expected = BartScore(MetricModel(other))(PREDICTIONS, REFERENCES)
    assert BartScore(MetricModel(bart, weights=str(file)))(PREDICTIONS, REFERENCES) == pytest.approx(expected, abs=1e-6)
    assert BartScore(MetricModel(bart))(PREDICTIONS, REFERENCES) != pytest.approx(expected, abs=1e-2)


def test_weights_that_do_not_fit_or_hold_code_are_refused(bart: str, tmp_path: Path):
    torch.save({"model.shared.weight": torch.zeros(3, 3)}, tmp_path / "shape.pth")
    torch.save({"something.else": torch.zeros(3)}, tmp_path / "names.pth")
    torch.save({"x": Path("code")}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("shape.pth", "code.pth", "text.pth", "text.safetensors"):
        with pytest.raises(UserError, match=rf"weights .*{name} cannot be loaded"):
            BartScore(MetricModel(bart, weights=str(tmp_path / name)))
    with pytest.raises(UserError, match=r"are not those of this model \(see .*\)"):
        BartScore(MetricModel(bart, weights=str(tmp_path / "names.pth")))


def test_long_texts_are_cut_and_blank_references_refused(bart: str):
    score = BartScore(MetricModel(bart))
    assert score(["cat " * 500], ["dogs"]) == pytest.approx(score(["cat " * 62], ["dogs"]), abs=1e-5)
    assert score([], []) == []
    with pytest.raises(ValueError, match="Reference 0 is empty"):
        score(["cat"], [" "])
