from __future__ import annotations

import math

import pytest
import torch

from data_pipeline.quality.loglikelihood import LogLikelihood, candidate_context, reference_context
from data_pipeline.quality.model_folder import MetricModel
from tests.data_pipeline.tiny_models import save_gpt

CONTEXTS = ["the cat", "dogs ran 3 miles to see birds", "a", "near the old bridge"]
TEXTS = ["sat on a mat .", "birds", "the old stone bridge and the dogs 12 45", "cat"]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_gpt(tmp_path_factory.mktemp("gpt"))


def by_definition(context: str, text: str, folder: str) -> list[float]:
    """log p of each token of `text`, one forward pass a token, without padding."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer, model = AutoTokenizer.from_pretrained(folder), GPT2LMHeadModel.from_pretrained(folder).eval()
    read, log_p = [tokenizer.bos_token_id, *tokenizer(context)["input_ids"]], []
    for token in tokenizer(text)["input_ids"]:
        with torch.no_grad():
            logits = model(torch.tensor([read])).logits[0, -1]
        log_p.append(float(torch.log(torch.softmax(logits.double(), 0)[token])))
        read.append(token)
    return log_p


def test_equals_the_definition_in_any_batch(gpt: str):
    expected = [by_definition(*pair, gpt) for pair in zip(CONTEXTS, TEXTS, strict=True)]
    for batch_tokens in (1, 20, 10_000):
        means, sums = LogLikelihood(MetricModel(gpt, batch_tokens=batch_tokens))(CONTEXTS, TEXTS)
        assert sums == pytest.approx([sum(values) for values in expected], abs=1e-4)
        assert means == pytest.approx([sum(values) / len(values) for values in expected], abs=1e-5)


def test_probabilities_of_all_continuations_add_up_to_one(gpt: str):
    from tests.data_pipeline.tiny_models import VOCABULARY

    _, sums = LogLikelihood(MetricModel(gpt))(["the cat sat"] * len(VOCABULARY), list(VOCABULARY))
    assert sum(map(math.exp, sums)) == pytest.approx(1.0, abs=1e-5)


def test_what_is_too_long_is_cut_where_it_says(gpt: str):
    score = LogLikelihood(MetricModel(gpt))  # 64 positions
    long = " ".join(["cat", "dogs"] * 50)
    means, sums = score([long, "the cat", long], ["birds", long, long])
    kept = by_definition("", " ".join(["dogs"] * 62), gpt)
    assert all(map(math.isfinite, means))
    assert sums[0] == pytest.approx(sum(by_definition(" ".join(["cat", "dogs"] * 31), "birds", gpt)), abs=1e-4)
    assert len(kept) == 62
    assert sums[1] / means[1] == pytest.approx(61)  # all but <s> and the context
    assert sums[2] / means[2] == pytest.approx(32)  # half the limit


def test_nothing_to_score_is_nan_and_no_pairs_are_none(gpt: str):
    score = LogLikelihood(MetricModel(gpt))
    means, sums = score(["the", "the"], ["", "cat"])
    assert math.isnan(means[0])
    assert math.isnan(sums[0])
    assert sums[1] == pytest.approx(by_definition("the", "cat", gpt)[0], abs=1e-5)
    assert score([], []) == ([], [])


def test_the_reference_s_context_holds_the_candidate():
    assert reference_context("q", "a") == "q\n\na\n\n"
    assert candidate_context("q") == "q\n\n"
