from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from data_pipeline.config import Lengths
from data_pipeline.encoding import encode_texts
from data_pipeline.errors import UserError
from data_pipeline.tokenization import (
    SPECIAL_TOKENS,
    Template,
    load_tokenizer,
    question_text,
    tokenizer_fingerprint,
)


def test_question_text_has_a_newline_only_between_two_parts():
    assert question_text("do", "this") == "do\nthis"
    assert question_text("", "this") == "this"
    assert question_text("do") == "do"


def test_a_candidate_reads_question_x_end_response_y_end(any_tokenizer: PreTrainedTokenizerBase):
    template = Template.from_tokenizer(any_tokenizer)
    question, *responses = (ids for ids, _ in encode_texts(["say it", "the cat", ""], any_tokenizer, 99))
    for ids in responses:
        whole = template.candidate_ids(question, ids)
        assert whole.dtype == np.int32
        assert len(whole) == template.candidate_length(len(question), len(ids))
        opening = any_tokenizer.cls_token_id  # none but BERT has one
        expected = [
            *([] if opening is None else [opening]),
            template.question_id,
            *question,
            template.eos_id,
            template.response_id,
            *ids,
            template.eos_id,
        ]
        assert whole.tolist() == expected
        assert whole.tolist().index(template.response_id) == template.question_length(len(question))
    assert any_tokenizer.decode(question).strip() == "say it"
    assert any_tokenizer.decode(responses[0]).strip() == "the cat"
    assert len(responses[1]) == 0


def test_a_separator_ends_a_text_where_nothing_else_does(bert_tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    template = Template.from_tokenizer(bert_tokenizer)
    assert (template.eos_id, template.opening_id, template.pad_id) == (3, 2, 0)
    bert_tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert Template.from_tokenizer(again) == template
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(bert_tokenizer)
    assert again.decode([2, *encode_texts(["the cat"], again, 9)[0][0], 3], skip_special_tokens=True) == "the cat"


def test_a_template_from_before_there_was_an_opening_has_none():
    assert Template(question_id=3, response_id=4, eos_id=1, pad_id=0).opening_id is None


def test_template_tokens_are_appended_where_they_are_missing(
    t5_tokenizer: PreTrainedTokenizerBase, byte_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
):
    assert byte_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [384, 385]
    ids = t5_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == [len(t5_tokenizer) - 2, len(t5_tokenizer) - 1]
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [3, 4]


def test_a_saved_tokenizer_loads_with_the_same_fingerprint(any_tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    any_tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(any_tokenizer)
    assert Template.from_tokenizer(again) == Template.from_tokenizer(any_tokenizer)


def test_fingerprints_tell_tokenizers_apart_and_forget_what_was_encoded(
    tokenizer: PreTrainedTokenizerBase, byte_tokenizer: PreTrainedTokenizerBase, t5_tokenizer: PreTrainedTokenizerBase
):
    prints = [tokenizer_fingerprint(each) for each in (tokenizer, byte_tokenizer, t5_tokenizer)]
    assert len(set(prints)) == 3
    tokenizer(["a", "b b b"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == prints[0]


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.timeout(300)
def test_an_unreachable_hub_is_one_sentence_and_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"hub cannot be reached .* give a local folder") as caught:
        load_tokenizer("nobody/no-such-model")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 120


def test_lengths_must_hold_a_token():
    with pytest.raises(UserError, match=r"lengths\.response is 0"):
        Lengths(response=0)
