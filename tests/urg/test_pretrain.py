"""Pre-training writes a folder that training starts from, and goes on from one."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.sample import BASE_MODEL
from data_pipeline.tokenization import load_tokenizer
from urg.config import ScratchConfig
from urg.model import URG
from urg.pretrain import main
from urg.pretrain_config import PretrainConfig

TINY = ScratchConfig(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)


def test_both_stages_leave_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(PretrainConfig(first, steps=2, batch=2, vocab_size=320, log_every=1, shape=TINY))
    main(PretrainConfig(second, steps=2, batch=2, log_every=1, start=first, rank=True))
    assert capsys.readouterr().out.count("step 2/2") == 2
    before, after = (URG.from_pretrained(folder).state_dict() for folder in (first, second))
    assert any(not before[name].equal(after[name]) for name in before)
    assert len(load_tokenizer(second)) == len(load_tokenizer(first)) <= 320


def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="choose another --output"):
        main(PretrainConfig(tmp_path / "file" / "model", steps=10**6))


def test_the_model_that_ships_is_small_whole_and_marked() -> None:
    weights = BASE_MODEL / "model.safetensors"
    assert weights.stat().st_size < 10_000_000
    assert (BASE_MODEL / "tokenizer.json").stat().st_size < 200_000
    model = URG.from_pretrained(BASE_MODEL)
    assert model.settings.generated_data
    assert model.settings.label is None
    assert model.t5.config.vocab_size >= len(load_tokenizer(BASE_MODEL))
