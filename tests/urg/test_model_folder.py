"""Exported folders: others can read their weights, and damaged weights are not used."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.train_tokenizer import save_tokenizer, train_tokenizer
from urg.ensemble import Ensemble
from urg.model import URG, Settings
from urg.model_folder import SUMS_FILE, count_parameters

SHAPE = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


@pytest.fixture
def shared_umask() -> Iterator[None]:
    """New files are for the group too, as on a shared folder."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def exported(folder: Path, shard_size: str = "1GB") -> Path:
    """A tiny untrained URG."""
    tokenizer = train_tokenizer(["The cup is in the hall."], 300)
    model = URG.from_scratch(len(tokenizer), Settings(), **SHAPE)
    model.network.save_pretrained = functools.partial(model.network.save_pretrained, max_shard_size=shard_size)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.parametrize("shard_size", ["1GB", "8KB"])
def test_parameters_are_counted_from_the_headers(tmp_path: Path, shard_size: str) -> None:
    folder = exported(tmp_path, shard_size)
    assert count_parameters(folder) == sum(p.numel() for p in URG.from_pretrained(folder).parameters())
    next(folder.glob("*.safetensors")).write_bytes(b"\xff" * 20)
    assert count_parameters(folder) is None
    assert count_parameters(tmp_path / "none") is None


def flip_a_bit(file: Path) -> None:
    """In a weight, where no format would notice."""
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


def test_every_exported_file_has_the_mode_that_the_umask_says(tmp_path: Path, shared_umask: None) -> None:
    folder = exported(tmp_path / "model", "20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {
        file.name: oct(0o664) for file in folder.iterdir()
    }


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_a_flipped_bit_in_any_weights_is_one_sentence_that_names_the_file(tmp_path: Path, shard_size: str) -> None:
    folder = exported(tmp_path / "model", shard_size)
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS_FILE], cwd=folder, check=True, timeout=60)
    damaged = sorted(folder.glob("*.safetensors"))[-1]
    Ensemble.from_pretrained(folder)
    flip_a_bit(damaged)
    with pytest.raises(UserError, match=f"{damaged.name} is damaged or was altered"):
        Ensemble.from_pretrained(folder)
    Ensemble.from_pretrained(folder, verify=False)
    (folder / SUMS_FILE).unlink()
    Ensemble.from_pretrained(folder)


def test_weights_or_checksums_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read \(No such file"):
        Ensemble.from_pretrained(folder)
    (folder / SUMS_FILE).write_bytes(b"\xff")
    with pytest.raises(UserError, match=f"{SUMS_FILE} cannot be read"):
        Ensemble.from_pretrained(folder)
