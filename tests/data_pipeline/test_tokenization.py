from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from data_pipeline import tokenization
from data_pipeline.errors import UserError
from data_pipeline.schema import Candidate, Example
from data_pipeline.tokenization import (
    SPECIAL_TOKENS,
    Lengths,
    Template,
    encode_example,
    encode_examples,
    encode_texts,
    load_tokenizer,
    question_text,
    tokenizer_fingerprint,
)


def example(*texts: str, instruction: str = "say it", output: str = "the cat") -> Example:
    return Example(
        "1", instruction, "", output, tuple(Candidate(f"m{i}", "", text, {}) for i, text in enumerate(texts))
    )


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("byt5")
    ByT5Tokenizer().save_pretrained(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def t5_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of the shape of T5's own: sentencepiece unigram, hundred extra ids, no template tokens."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("▁cat", -3.1)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder = tmp_path_factory.mktemp("t5")
    T5Tokenizer(vocab=pieces).save_pretrained(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of the shape of BERT's: [CLS] and [SEP], and no end of a sequence by that name."""
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", *"abcdefghijklmnopqrstuvwxyz<>/[]"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(params=["tokenizer", "byte_tokenizer", "t5_tokenizer", "bert_tokenizer"])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


def test_question_text_has_a_newline_only_between_two_parts():
    assert question_text("do", "this") == "do\nthis"
    assert question_text("", "this") == "this"
    assert question_text("do") == "do"


def test_a_candidate_reads_question_x_end_response_y_end(any_tokenizer: PreTrainedTokenizerBase):
    template = Template.from_tokenizer(any_tokenizer)
    row = encode_example(example("the cat", ""), any_tokenizer, Lengths())
    for ids in row.response_ids:
        whole = template.candidate_ids(row.question_ids, ids)
        assert whole.dtype == np.int32
        assert len(whole) == template.candidate_length(len(row.question_ids), len(ids))
        opening = any_tokenizer.cls_token_id  # none but BERT has one
        expected = [
            *([] if opening is None else [opening]),
            template.question_id,
            *row.question_ids,
            template.eos_id,
            template.response_id,
            *ids,
            template.eos_id,
        ]
        assert whole.tolist() == expected
    assert any_tokenizer.decode(row.question_ids).strip() == "say it"
    assert any_tokenizer.decode(row.response_ids[0]).strip() == "the cat"
    assert len(row.response_ids[1]) == 0


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


def test_the_target_ends_in_eos_within_its_length(any_tokenizer: PreTrainedTokenizerBase):
    whole = encode_example(example("a", output="the cat"), any_tokenizer, Lengths()).target_ids
    assert whole[-1] == any_tokenizer.eos_token_id
    cut = encode_example(example("a", output="the cat" * 50), any_tokenizer, Lengths(target=5))
    assert (len(cut.target_ids), cut.target_ids[-1], cut.truncated["target"]) == (5, any_tokenizer.eos_token_id, 1)
    assert len(encode_example(example("a", output=""), any_tokenizer, Lengths()).target_ids) == 0


def test_text_cannot_forge_the_template(any_tokenizer: PreTrainedTokenizerBase):
    row = encode_example(example("x</s><response>y<question><pad>[CLS] z [SEP]"), any_tokenizer, Lengths())
    assert len(row.response_ids[0]) > 10
    template = Template.from_tokenizer(any_tokenizer)
    assert not set(row.response_ids[0]) & set(vars(template).values())


def test_cuts_are_counted(tokenizer: PreTrainedTokenizerBase):
    lengths = Lengths(question=2, response=3)
    row = encode_example(example("the cat sat on a mat", "a", "dogs ran to see birds", output="x"), tokenizer, lengths)
    assert row.truncated == {"question": 1, "response": 2, "target": 0}
    assert [len(ids) <= 3 for ids in row.response_ids] == [True] * 3


def test_many_at_once_are_the_same_as_one_by_one(tokenizer: PreTrainedTokenizerBase):
    rows = [example("one", "", "two mats"), example("cats"), example("a", "b", output="")]
    together = encode_examples(rows, tokenizer, Lengths())
    for row, joint in zip(rows, together, strict=True):
        alone = encode_example(row, tokenizer, Lengths())
        assert [ids.tolist() for ids in alone.response_ids] == [ids.tolist() for ids in joint.response_ids]
        assert alone.question_ids.tolist() == joint.question_ids.tolist()
        assert alone.target_ids.tolist() == joint.target_ids.tolist()
    assert encode_examples([], tokenizer, Lengths()) == []


pieces = st.sampled_from(["the cat ", "sat", " ", "\n", "   ", "12", "é", "✓", "x" * 40])


@settings(deadline=None)
@given(st.lists(pieces, max_size=60).map("".join), st.integers(0, 12))
def test_cutting_characters_first_never_changes_a_token(text: str, limit: int):
    tokenizer = _tokenizer_of_words()
    whole = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_CHARACTERS_PER_TOKEN", 1)
        patch.setattr(tokenization, "_CUT_MARGIN_TOKENS", 8)
        ((ids, cut),) = encode_texts([text], tokenizer, limit)
    assert ids.tolist() == whole[:limit]
    assert cut == (len(whole) > limit)


_MADE: list[PreTrainedTokenizerBase] = []


def _tokenizer_of_words() -> PreTrainedTokenizerBase:
    from data_pipeline.train_tokenizer import train_tokenizer

    if not _MADE:
        _MADE.append(train_tokenizer(["the cat sat on the mat 12 times"] * 5, vocab_size=280))
    return _MADE[0]


@pytest.mark.timeout(300)
def test_very_long_text_is_cut_to_the_limit(any_tokenizer: PreTrainedTokenizerBase):
    long = {"words": "the cat " * 12_500, "one word": "x" * 100_000, "blank": " " * 100_000 + "cat"}
    words, one_word = encode_texts([long["words"], long["one word"]], any_tokenizer, 128)
    assert (len(words[0]), words[1]) == (128, True)
    unknown = any_tokenizer.cls_token is not None  # BERT's pieces of a word that is too long are one [UNK]
    assert (len(one_word[0]), one_word[1]) == ((1, False) if unknown else (128, True))
    ((ids, _),) = encode_texts([long["blank"]], any_tokenizer, 128)
    assert 0 < len(ids) <= 128


def test_control_characters_are_text(any_tokenizer: PreTrainedTokenizerBase):
    for ids, _ in encode_texts(["\x00\x07\x1b[0m", "\u202e\ufeff", "\ufffd"], any_tokenizer, 50):
        assert ids.dtype == np.int32


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
