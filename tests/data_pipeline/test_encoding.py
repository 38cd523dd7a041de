"""The ids are those of transformers' own call of the tokenizer, whichever way they are made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_pipeline import encoding
from data_pipeline.config import Lengths
from data_pipeline.encoding import EncodedRows, Encoder, Tokens, encode_rows, encode_texts, stands_alone
from data_pipeline.schema import Candidate, Example
from data_pipeline.tokenization import SPECIAL_TOKENS, Template, load_tokenizer


def example(*texts: str, instruction: str = "say it", output: str = "the cat") -> Example:
    return Example(
        "1", instruction, "", output, tuple(Candidate(f"m{i}", "", text, {}) for i, text in enumerate(texts))
    )


def encoded(tokenizer: PreTrainedTokenizerBase, *rows: Example, lengths: Lengths | None = None) -> EncodedRows:
    return encode_rows(rows, Encoder.of(tokenizer), lengths or Lengths())


def lists(tokens: Tokens) -> list[list[int]]:
    return [tokens[text].tolist() for text in range(len(tokens))]


def test_the_target_ends_in_eos_within_its_length(any_tokenizer: PreTrainedTokenizerBase):
    eos = any_tokenizer.eos_token_id
    rows = [example("a", output=output) for output in ("the cat", "", "the cat" * 50)]
    whole, none, long = lists(encoded(any_tokenizer, *rows).targets)
    assert (whole[-1], whole.count(eos), none, long[-1], long.count(eos)) == (eos, 1, [], eos, 1)
    targets = encoded(any_tokenizer, *rows, lengths=Lengths(target=5)).targets
    assert (lists(targets)[2][:4], targets[2][-1], len(targets[2])) == (long[:4], eos, 5)
    assert targets.cut.tolist()[1:] == [False, True]


def test_text_cannot_forge_the_template(any_tokenizer: PreTrainedTokenizerBase):
    forged = "x</s><response>y<question><pad>[CLS] z [SEP]"
    (ids,) = lists(encoded(any_tokenizer, example(forged)).responses)
    assert len(ids) > 10
    assert not set(ids) & set(vars(Template.from_tokenizer(any_tokenizer)).values())


def test_cuts_are_told(tokenizer: PreTrainedTokenizerBase):
    row = example("the cat sat on a mat", "a", "dogs ran to see birds", output="x")
    found = encoded(tokenizer, row, lengths=Lengths(question=2, response=3))
    assert (found.questions.cut.tolist(), found.targets.cut.tolist()) == ([True], [False])
    assert found.responses.cut.tolist() == [True, False, True]
    assert max(found.responses.lengths) == 3


def test_many_at_once_are_the_same_as_one_by_one(tokenizer: PreTrainedTokenizerBase):
    rows = [example("one", "", "two mats"), example("cats"), example("a", "b", output="")]
    together = encoded(tokenizer, *rows)
    alone = [encoded(tokenizer, row) for row in rows]
    for kind in ("questions", "responses", "targets"):
        assert lists(getattr(together, kind)) == [ids for each in alone for ids in lists(getattr(each, kind))]
    assert together.n_candidates.tolist() == [3, 1, 2]
    assert len(encoded(tokenizer).responses) == 0


pieces = st.sampled_from(["the cat ", "sat", " ", "\n", "   ", "12", "é", "✓", "x" * 40])


@given(st.lists(pieces, max_size=60).map("".join), st.integers(0, 12))
def test_cutting_characters_first_never_changes_a_token(text: str, limit: int):
    tokenizer = _made("bytes")
    whole = _plainly(tokenizer, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_CHARACTERS_PER_TOKEN", 1)
        patch.setattr(encoding, "_CUT_MARGIN_TOKENS", 8)
        ((ids, cut),) = encode_texts([text], tokenizer, limit)
        by_words = Encoder.of(tokenizer).encode([text, text[:9]], limit)
    assert ids.tolist() == by_words[0].tolist() == whole[:limit]
    assert cut == by_words.cut[0] == (len(whole) > limit)


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


_WORDS = ["the cat sat on the mat 12 times, and the dog's 3 don't."] * 5
_MADE: dict[str, PreTrainedTokenizerBase] = {}


def _made(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one of the shapes that texts are cut at spaces for, made once: hypothesis takes no fixtures."""
    from transformers import BertTokenizer, RobertaTokenizer, T5Tokenizer

    from data_pipeline.train_tokenizer import train_tokenizer

    if kind not in _MADE:
        letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
        scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("cat", -3.1), *letters]
        named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "##at", *"abcdefghi<>/[]", *(f"##{c}" for c in "abcdefgh")]
        byte_level = train_tokenizer(_WORDS, 290)
        rules = json.loads(byte_level.backend_tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in rules["merges"]]
        if kind == "bytes":
            _MADE[kind] = byte_level
        elif kind == "t5":
            _MADE[kind] = T5Tokenizer(vocab=scored)
        elif kind == "bert":
            _MADE[kind] = BertTokenizer(vocab={piece: i for i, piece in enumerate(named)})
        elif kind == "roberta":
            _MADE[kind] = RobertaTokenizer(vocab=rules["vocab"], merges=merges, eos_token="</s>", pad_token="<pad>")
        else:
            _MADE[kind] = _sentencepiece(scored)
        missing = [token for token in SPECIAL_TOKENS if token not in _MADE[kind].get_vocab()]
        _MADE[kind].add_tokens(missing, special_tokens=True)
    return _MADE[kind]


def _sentencepiece(scored: list[tuple[str, float]], **metaspace: Any) -> PreTrainedTokenizerFast:
    """Unigram behind NFKC, blanks as ▁: a T5 of its first kind."""
    inner = Tokenizer(models.Unigram(scored, unk_id=2))
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", **metaspace)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def _plainly(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """What transformers makes of the whole text, without what the template keeps for itself."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    opening = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    kept = {tokenizer.pad_token_id, tokenizer.eos_token_id or tokenizer.sep_token_id, opening}
    return [token for token in ids if token not in kept | set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))]


texts = st.lists(
    st.sampled_from(["the", "cat", " ", " ", " ", "  ", "\n", "\t", "\0", "12", "don't", "é", "¨", "\u0301", "\u00a0",
                     "中", "▁", "\ufeff", "</s>", "[SEP]", "<question>", ".", "x" * 60]) | st.characters(codec="utf-8"),
    max_size=20,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("kind", ["bytes", "roberta", "t5", "bert", "sentencepiece"])
@given(texts=st.lists(texts, max_size=6))
def test_ids_by_words_are_those_of_whole_texts(kind: str, texts: list[str]):
    tokenizer = _made(kind)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token  # as `load_tokenizer` does
    encoder = Encoder.of(tokenizer)
    assert encoder._by_words
    for _ in range(2):  # the second time from what is remembered
        assert lists(encoder.encode(texts, 1 << 20)) == [_plainly(tokenizer, text) for text in texts]


@pytest.mark.parametrize("name", ["alpaca_eval", "oasst_eval"])
def test_real_answers_by_words_are_as_plain_ones(name: str, any_tokenizer: PreTrainedTokenizerBase, shared_data: Path):
    lines = (shared_data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    answers = [candidate["text"] for line in lines for candidate in json.loads(line)["candidates"]]
    tokens = Encoder.of(any_tokenizer).encode(answers, 100)
    for index, (ids, cut) in enumerate(encode_texts(answers, any_tokenizer, 100)):
        assert (tokens[index].tolist(), tokens.cut[index]) == (ids.tolist(), cut)


def test_remembered_words_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "_MOST_WORDS", 50)
    encoder = Encoder.of(_made("bytes"))
    for first in range(0, 1000, 20):
        words = [f"w{number}" for number in range(first, first + 20)]
        assert lists(encoder.encode([" ".join(words)], 1 << 20)) == [_plainly(_made("bytes"), " ".join(words))]
        assert len(encoder._words) <= 70
    encoder.encode(["y" * 1000], 10)
    assert max(map(len, encoder._words)) <= encoding._LONGEST_WORD


def _without_splitting(**changes: Any) -> Tokenizer:
    inner = Tokenizer.from_str(_made("bytes").backend_tokenizer.to_str())
    for name, value in changes.items():
        setattr(inner, name, value)
    return inner


def test_texts_are_cut_at_spaces_for_no_tokenizer_that_may_look_beyond(byte_tokenizer: PreTrainedTokenizerBase):
    assert not Encoder.of(byte_tokenizer)._by_words
    assert encoding._splits_at_spaces(_without_splitting())
    regex = pre_tokenizers.Split(tokenizers.Regex(r"\w+ \w+"), "isolated")
    backends = {
        "none": _without_splitting(pre_tokenizer=None),
        "digits only": _without_splitting(pre_tokenizer=pre_tokenizers.Digits()),
        "a regex": _without_splitting(pre_tokenizer=pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel()])),
        "bytes unsplit": _without_splitting(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)),
        "pieces across words": _sentencepiece([("a", 0.0), ("b", 0.0), ("<unk>", 0.0)], split=False).backend_tokenizer,
        "prepends": _without_splitting(normalizer=normalizers.Prepend("▁")),
        "random": _without_splitting(model=models.BPE({"a": 0}, [], dropout=0.1)),
    }
    backends["a word of its own"] = _without_splitting()
    backends["a word of its own"].add_tokens(["the cat"])
    assert [name for name, backend in backends.items() if encoding._splits_at_spaces(backend)] == []


def test_a_saved_tokenizer_encodes_as_the_loaded_one_does(any_tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    any_tokenizer.save_pretrained(str(tmp_path))
    again = load_tokenizer(tmp_path)
    assert stands_alone(tmp_path, again) == again.is_fast
    if not again.is_fast:
        return
    rows = [example("the cat </s> sat", "", "1 2  3\n4"), example("é x", output="")]
    loaded = Encoder.load(tmp_path, Template.from_tokenizer(again))
    for kind in ("questions", "responses", "targets"):
        expected = getattr(encoded(any_tokenizer, *rows), kind)
        assert lists(getattr(encode_rows(rows, loaded, Lengths()), kind)) == lists(expected)


def test_a_file_that_encodes_otherwise_does_not_stand_alone(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    tokenizer.save_pretrained(str(tmp_path))
    assert stands_alone(tmp_path, tokenizer)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules | {"normalizer": {"type": "Lowercase"}}))
    assert not stands_alone(tmp_path, tokenizer)


def test_workers_need_no_transformers_to_encode(tokenizer_folder: Path):
    code = f"""
import sys
from pathlib import Path
from data_pipeline.encoding import Encoder
from data_pipeline.tokenization import Template
encoder = Encoder.load(Path({str(tokenizer_folder)!r}), Template(3, 4, 1, 0))
assert len(encoder.encode(["the cat"], 9)[0])
print("transformers" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
