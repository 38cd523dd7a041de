"""GenFuser: what it reads, and that a folder of it loads back and writes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from data_pipeline.sample import BASE_MODEL
from data_pipeline.tokenization import load_tokenizer
from tests.urg.systems.tiny import NAN, row
from urg.model import URG, Settings
from urg.systems.gen_fuser import FuserSettings, FuserTexts, FusesBest, GenFuser, best_first
from urg.systems.protocol import silent

SHAPE = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(BASE_MODEL)


MADE = row("1", ["red green blue", "one </s> two", "three"], output="five", instruction="name it")


def test_the_input_is_instruction_input_candidates_and_request(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = FuserTexts(tokenizer, FuserSettings())
    shown = tokenizer.decode(texts.source(MADE, (2, 1)))
    assert shown == (
        "Instruction: name it</s>Input: to this</s>Candidate 0: three</s>Candidate 1: one   two</s>"
        "Summarize candidates into a better one for the given instruction:"
    )
    tokenizer.add_tokens(["<extra_id_0>", "<extra_id_1>"], special_tokens=True)
    assert "Candidate 1: <extra_id_1>:one" in tokenizer.decode(
        FuserTexts(tokenizer, FuserSettings()).source(MADE, (2, 1))
    )


def test_a_long_input_loses_its_instruction_and_keeps_candidates_and_request(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = FuserTexts(tokenizer, FuserSettings(source_tokens=90, candidate_tokens=6))
    long = row("1", ["red green blue " * 9, "two"], instruction="name it " * 200)
    ids = texts.source(long, (0, 1))
    shown = tokenizer.decode(ids)
    assert len(ids) == 90
    assert shown.startswith("Instruction: name it")
    assert shown.endswith("Candidate 1: two</s>Summarize candidates into a better one for the given instruction:")
    (candidate,) = [part for part in shown.split("</s>") if part.startswith("Candidate 0: ")]
    kept = candidate.removeprefix("Candidate 0: ").removesuffix("...")
    assert len(tokenizer(kept, add_special_tokens=False)["input_ids"]) == 6


def test_a_reference_ends_in_eos_and_a_blank_one_has_no_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = FuserTexts(tokenizer, FuserSettings(target_tokens=5))
    assert len(texts.target("  ")) == 0
    assert texts.target("five")[-1] == tokenizer.eos_token_id
    assert len(texts.target("five " * 50)) == 5


def test_the_best_come_first_and_a_missing_score_last() -> None:
    assert best_first(np.array([0.1, NAN, 0.5, 0.5]), 3) == (2, 3, 0)
    assert best_first(np.array([NAN, NAN]), 3) == (0, 1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_fuser_writes_the_same_texts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    t5 = URG.from_scratch(len(tokenizer), Settings(), tie_word_embeddings=tied, **SHAPE).t5
    model = GenFuser(t5, tokenizer, FuserSettings(k=2, target_tokens=6)).eval()
    model.save_pretrained(tmp_path, {name: p.detach() for name, p in model.named_parameters()}, steps=7)
    again = GenFuser.from_pretrained(tmp_path)
    assert again.settings == FuserSettings(k=2, target_tokens=6, steps=7)
    rows, scores = [MADE, row("2", ["a"])], [np.array([0.1, 0.3, 0.2]), np.array([1.0])]
    fused = FusesBest(model, silent, num_beams=2).fuse(rows, scores)
    assert fused == FusesBest(again, silent, num_beams=2).fuse(rows, scores)
    assert fused == FusesBest(GenFuser.from_pretrained(tmp_path).freeze(), silent, num_beams=2).fuse(rows, scores)
    assert [one.used for one in fused] == [(1, 2), (0,)]
    alone = FusesBest(again, silent, num_beams=2).fuse(rows[:1], scores[:1])
    assert alone == fused[:1]  # padding changes nothing
