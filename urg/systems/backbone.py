"""Encoders for the rankers: any, or that of an encoder-decoder, from a folder, a hub id, or at random."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from data_pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")


def load_encoder(name: str) -> nn.Module:
    """The pretrained encoder of a folder or hub id, without pooler. Raises UserError, one sentence, where there is
    none."""
    from transformers import AutoConfig

    with _sentence(name, "an encoder"):
        config = AutoConfig.from_pretrained(name)
    return _bare(_load(_class_for(config), name, "an encoder", spared="pooler."))


def load_model(auto_class: str, name: str, what: str) -> Any:
    """The pretrained model of a folder or hub id, by an Auto class of transformers. Raises UserError where its weights
    are not those of such a model. what: such as `a masked language model`."""
    import transformers

    return _load(getattr(transformers, auto_class), name, what)


def _load(cls: Any, name: str, what: str, spared: str = "-") -> Any:
    """spared: prefix of the weights that may lack."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    with _sentence(name, what):
        model, info = cls.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith(spared))
    if lacking:
        raise UserError(f"{name} is not {what}: it lacks weights, {lacking[0]} among them; name another folder.")
    return model


def require_config(name: str, what: str) -> None:
    """Raise UserError, one sentence, for a folder or hub id without a configuration."""
    from transformers import AutoConfig

    with _sentence(name, what):
        AutoConfig.from_pretrained(name)


@contextmanager
def _sentence(name: str, what: str) -> Iterator[None]:
    """Turn whatever transformers' parsers raise into one sentence: the folder is the user's to mend."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{name} cannot be loaded as {what} ({first_line(error)}); name a folder with config.json and "
            "model.safetensors, or a hub id that this machine can reach."
        ) from error


def encoder_of(config: PretrainedConfig) -> nn.Module:
    """An encoder of this shape with random weights."""
    cls = _class_for(config)
    return _bare(cls.from_config(config) if hasattr(cls, "from_config") else cls(config))


def random_encoder(vocab_size: int, d_model: int, d_kv: int, d_ff: int, num_layers: int, num_heads: int) -> nn.Module:
    """The encoder of a T5 v1.1 with random weights: what URG of that shape starts from too."""
    from transformers import T5Config

    shape: dict[str, Any] = {
        "d_model": d_model,
        "d_kv": d_kv,
        "d_ff": d_ff,
        "num_layers": num_layers,
        "num_heads": num_heads,
    }
    return encoder_of(T5Config(vocab_size=vocab_size, feed_forward_proj="gated-gelu", **shape))


def load_plain_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model as it is. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    folder = Path(name)
    # Without its files transformers would make up an empty tokenizer of the model's class.
    if folder.is_dir() and not any(file for glob in TOKENIZER_FILES for file in folder.glob(glob)):
        raise UserError(f"{name} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); save it there again.")
    with _sentence(str(name), "a tokenizer"):
        return AutoTokenizer.from_pretrained(str(name))


def _class_for(config: PretrainedConfig) -> Any:
    """The model class that holds no more than an encoder where there is one, such as T5EncoderModel."""
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    return AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def _bare(model: Any) -> nn.Module:
    """The encoder alone. A pooler would be trained by nothing."""
    if model.config.model_type in ("t5", "mt5", "umt5") or model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model  # type: ignore[no-any-return]
