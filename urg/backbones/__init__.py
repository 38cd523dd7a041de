"""The encoder-decoders that URG can be made of, behind one class (`protocol.py`). A new one: a class, a line in
BACKBONES, a test."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import UserError
from urg.backbones.bart import Bart
from urg.backbones.encoder_decoder import EncoderDecoder, WarmStart
from urg.backbones.protocol import Backbone
from urg.backbones.t5 import T5
from urg.backbones.t5gemma import T5Gemma

__all__ = ["BACKBONES", "Backbone", "backbone_of", "backbone_type"]

BACKBONES: dict[str, type[Backbone]] = {
    "t5": T5,
    "mt5": T5,
    "bart": Bart,
    "t5gemma": T5Gemma,
    "encoder-decoder": EncoderDecoder,
    "bert": WarmStart,
    "roberta": WarmStart,
    "xlm-roberta": WarmStart,
    "camembert": WarmStart,
}
"""By the `model_type` of config.json. ByT5 and Flan-T5 say t5, MiniLM says bert."""


def backbone_of(network: Any) -> Backbone:
    """A Hugging Face model as URG uses it. Raises UserError for an architecture that URG cannot be made of."""
    return backbone_type(network.config, "this model")(network)


def backbone_type(config: Any, name: str) -> type[Backbone]:
    """What takes a model of this configuration. Raises UserError, naming it `name`, for an unsupported architecture."""
    if config.model_type not in BACKBONES:
        raise UserError(
            f"model {name} is a {config.model_type}; URG takes an encoder-decoder ({_names(encoders=False)}), or an "
            f"encoder to start one from ({_names(encoders=True)})."
        )
    return BACKBONES[config.model_type]


def _names(encoders: bool) -> str:
    return ", ".join(name for name, cls in BACKBONES.items() if issubclass(cls, WarmStart) == encoders)
