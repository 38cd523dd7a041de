from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipeline.errors import UserError
from data_pipeline.train_tokenizer import (
    CONTROL_TOKENS,
    TrainTokenizerConfig,
    main,
    row_texts,
    save_tokenizer,
    train_tokenizer,
)

TEXTS = [f"Item {i}: the quick brown fox jumps over {i * 37} lazy dogs.\nThen it rests." for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=400)


def test_control_tokens_have_t5s_ids(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


small_tokenizer = functools.cache(lambda: train_tokenizer(TEXTS, vocab_size=300))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_the_round_trip_without_unknowns(text: str):
    tokenizer = small_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(len(CONTROL_TOKENS)))


def test_digits_stand_singly_and_always_alike(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer("12 x 2,1 (21)", add_special_tokens=False)["input_ids"]
    digits = [tokenizer.decode([i]) for i in ids if any(c.isdigit() for c in tokenizer.decode([i]))]
    assert digits == ["1", "2", "2", "1", "2", "1"]


def test_the_same_texts_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast):
    assert (
        train_tokenizer(iter(TEXTS), vocab_size=400).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    )


def test_the_saved_folder_loads_and_says_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded(TEXTS[7])["input_ids"] == tokenizer(TEXTS[7])["input_ids"]
    assert loaded(TEXTS[7])["input_ids"][-1] == loaded.eos_token_id
    assert loaded.model_max_length == 512
    assert loaded.decode(loaded(TEXTS[7])["input_ids"], skip_special_tokens=True) == TEXTS[7]


def test_2048_pieces_stay_below_200_kb(shared_data: Path, tmp_path: Path):
    tokenizer = train_tokenizer(
        row_texts((shared_data / "oasst_eval.jsonl").read_bytes().splitlines()), vocab_size=2048
    )
    save_tokenizer(tokenizer, tmp_path)
    assert len(tokenizer) == 2048
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000


def test_texts_are_those_of_the_readable_rows_that_are_accepted(
    write_rows: Callable[..., Path], make_rows: Callable[..., list[dict]]
):
    first, second = make_rows(2, candidates=1)
    path = write_rows("a.jsonl", [first, b"{", second])
    assert list(row_texts(path.read_bytes().splitlines(), accept=lambda row_id: row_id == second["id"])) == [
        f"{second['instruction']}\n{second['input']}",
        second["candidates"][0]["text"],
        second["output"],
    ]
    assert len(list(row_texts(path.read_bytes().splitlines()))) == 6


def test_no_text_and_too_few_pieces_are_refused():
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([""], vocab_size=300)
    with pytest.raises(UserError, match="at least 261"):
        train_tokenizer(TEXTS, vocab_size=100)


def test_the_command_writes_the_folder(
    write_rows: Callable[..., Path], make_rows: Callable[..., list[dict]], tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = write_rows("rows.jsonl", make_rows(20))
    main(TrainTokenizerConfig(input=str(path), output=str(tmp_path / "out"), vocab_size=300))
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert len(AutoTokenizer.from_pretrained(str(tmp_path / "out"))) <= 300


def test_an_output_under_a_file_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write the tokenizer"):
        save_tokenizer(tokenizer, tmp_path / "file" / "tokenizer")
