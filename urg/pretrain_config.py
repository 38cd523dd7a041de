"""The settings of `python -m urg.pretrain`: light, as everything in urg.config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from urg.config import ScratchConfig


@dataclass(frozen=True)
class PretrainConfig:
    """How to make the base model."""

    output: Path
    """Folder for model and tokenizer."""
    steps: int = 2000
    """Optimizer steps."""
    batch: int = 96
    """Generated examples a step."""
    lr: float = 3e-3
    """Peak learning rate; warm-up over 5 % of the steps, then linear decay."""
    vocab_size: int = 1280
    """Pieces of the tokenizer."""
    seed: int = 0
    """Seeds text and weights."""
    threads: int = 1
    """Torch threads."""
    log_every: int = 50
    """Steps between two lines of progress."""
    start: Path | None = None
    """A folder that this command made, to go on from; null: random weights and a new tokenizer."""
    rank: bool = False
    """Also learn to rank copies of a text by how much they are damaged (ROUGE-L against the clean text)."""
    shape: ScratchConfig = field(default_factory=lambda: ScratchConfig(d_ff=320, num_layers=3))
    """The model's shape."""
