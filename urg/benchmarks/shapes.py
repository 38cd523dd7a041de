"""Models to time: a T5's shape with random weights, so that nothing is downloaded, or a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipeline.errors import UserError
from urg.model import URG, Settings

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "t5-xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
}
"""The sizes of T5 v1.1 and Flan-T5 (Chung et al. 2022), and one for tests."""

VOCAB_SIZE = 32128


def make_model(shape: str, seed: int = 0) -> URG:
    """A URG without dropout: random weights in one of SHAPES, or the model in a folder. UserError for neither."""
    if shape in SHAPES:
        torch.manual_seed(seed)
        return URG.from_scratch(VOCAB_SIZE, Settings(), tie_word_embeddings=False, **SHAPES[shape]).eval()
    if not Path(shape).is_dir():
        raise UserError(f"{shape} is neither a model folder nor one of the shapes {', '.join(SHAPES)}.")
    return URG.from_pretrained(shape).eval()
