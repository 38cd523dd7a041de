"""Transformers' EncoderDecoderModel: an encoder of the BERT family, and a decoder of the same kind.

`WarmStart` makes one from an encoder's folder (Rothe et al. 2020): both halves start from its weights, the decoder's
head, where the folder has none, from random ones. Cross-attention starts as a copy of the same layer's self-attention,
as T5Gemma's does: from random weights all logits are nearly 0, all candidates score alike, and ranking has hardly a
gradient to begin with. So a pretrained MiniLM becomes a URG that fits a laptop; it has to learn to read its candidates
and to write before it does either well.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from data_pipeline.errors import UserError
from urg.backbones.one_token import cross_attention, layer_norm, linear
from urg.backbones.protocol import Backbone

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILY = ("bert", "roberta", "xlm-roberta", "camembert")
"""What encoder and decoder may be: transformers builds all of these alike."""


class EncoderDecoder(Backbone):
    """An EncoderDecoderModel of two halves of the BERT family, equally wide."""

    optional_weights = ("encoder.pooler.",)

    @classmethod
    def load(cls, name: str) -> tuple[Any, set[str]]:
        """As others do."""
        with _without_a_report_of_new_weights():
            return super().load(name)

    def __init__(self, network: Any) -> None:
        """Raises UserError for halves of other kinds, or of unequal width."""
        super().__init__(network)
        config = network.config
        kinds = {config.encoder.model_type, config.decoder.model_type}
        if not kinds <= set(FAMILY):
            raise UserError(
                f"the encoder-decoder is made of {' and '.join(sorted(kinds))}; URG takes {', '.join(FAMILY)}."
            )
        if config.encoder.hidden_size != config.decoder.hidden_size:
            raise UserError(
                f"the encoder-decoder's halves are {config.encoder.hidden_size} and {config.decoder.hidden_size} wide; "
                "URG needs them equally wide."
            )
        network.encoder.pooler = None  # which nothing here would train

    @property
    def width(self) -> int:
        """D."""
        return int(self.network.config.encoder.hidden_size)

    @property
    def depth(self) -> int:
        """Layers of encoder and decoder together."""
        config = self.network.config
        return int(config.encoder.num_hidden_layers + config.decoder.num_hidden_layers)

    @property
    def longest(self) -> int:
        """As many positions as were learnt by both."""
        halves = (self.network.encoder, self.network.decoder.base_model)
        return min(h.config.max_position_embeddings - _first_position(h.embeddings) for h in halves)

    def resize(self, vocab_size: int) -> None:
        """Make both embeddings and the head of this size."""
        for half in (self.network.encoder, self.network.decoder):
            half.resize_token_embeddings(vocab_size)

    @property
    def decoder(self) -> Any:
        """Without its head."""
        return self.network.decoder.base_model

    def head(self, states_PD: Tensor) -> Tensor:
        """BERT's `cls`, RoBERTa's `lm_head`."""
        own = self.network.decoder
        logits_PV: Tensor = (own.cls if hasattr(own, "cls") else own.lm_head)(states_PD)
        return logits_PV

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's layers."""
        layers: Sequence[nn.Module] = self.network.decoder.base_model.encoder.layer
        return layers

    def start(self, start_B: Tensor) -> Tensor:
        """The embedding at the first position, of the first type."""
        own = self.network.decoder.base_model.embeddings
        position_1 = start_B.new_full((1,), _first_position(own))
        x_BD = own.word_embeddings(start_B).float() + own.position_embeddings(position_1).float()
        x_BD = x_BD + own.token_type_embeddings(position_1.new_zeros(1)).float()
        normed_BD: Tensor = own.dropout(layer_norm(own.LayerNorm, x_BD))
        return normed_BD

    def layer_step(self, layer: Any, x_BD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Norms after each part."""
        value_BD = linear(layer.attention.self.value, x_BD)  # one token attends to itself with weight 1
        x_BD = _closed(layer.attention.output, value_BD, x_BD)
        cross = layer.crossattention.self
        q_BHE = linear(cross.query, x_BD).unflatten(-1, (cross.num_attention_heads, -1)) * cross.scaling
        mean_BL, context_BD = cross_attention(q_BHE, cross.key, cross.value, states_BLD, mask_BL)
        x_BD = _closed(layer.crossattention.output, context_BD, x_BD)
        inner_BF = layer.intermediate.intermediate_act_fn(linear(layer.intermediate.dense, x_BD))
        return _closed(layer.output, inner_BF, x_BD), mean_BL


class WarmStart(EncoderDecoder):
    """Makes an EncoderDecoderModel from an encoder of the BERT family."""

    @classmethod
    def load(cls, name: str) -> tuple[Any, set[str]]:
        """Both halves from the weights of a folder or hub id, the special tokens from its tokenizer. Raises UserError
        where it has none, or is no such encoder."""
        from transformers import AutoModelForCausalLM

        from data_pipeline.tokenization import Template, load_tokenizer
        from urg.systems.backbone import load_encoder

        template, encoder = Template.from_tokenizer(load_tokenizer(name)), load_encoder(name)
        with _without_a_report_of_new_weights():
            config = _decoder_config(encoder.config)
            decoder: Any = AutoModelForCausalLM.from_pretrained(name, config=config, use_safetensors=True)
        for layer in decoder.base_model.encoder.layer:
            layer.crossattention.load_state_dict(layer.attention.state_dict())
        network = _joined(encoder, decoder)
        tokens = {"pad_token_id": template.pad_id, "eos_token_id": template.eos_id}
        tokens["decoder_start_token_id"] = (
            tokens["pad_token_id"] if template.opening_id is None else template.opening_id
        )
        for key, token in tokens.items():
            setattr(network.config, key, token)
            setattr(network.generation_config, key, token)
        return network, set()

    @classmethod
    def random(cls, config: Any) -> Any:
        """Of the encoder's configuration."""
        from transformers import AutoModel, AutoModelForCausalLM

        encoder = AutoModel.from_config(config, add_pooling_layer=False)
        return _joined(encoder, AutoModelForCausalLM.from_config(_decoder_config(config)))


def _decoder_config(encoder_config: Any) -> Any:
    """The same shape, with cross-attention."""
    own = {**encoder_config.to_dict(), "is_decoder": True, "add_cross_attention": True}
    return type(encoder_config).from_dict(own)


def _joined(encoder: Any, decoder: Any) -> Any:
    from transformers import EncoderDecoderModel

    return EncoderDecoderModel(encoder=encoder, decoder=decoder)


@contextmanager
def _without_a_report_of_new_weights() -> Iterator[None]:
    """Transformers warns of the cross-attention that no encoder's folder has, and of the pooler that none of ours has:
    here both are meant so."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _closed(part: Any, inner: Tensor, x_BD: Tensor) -> Tensor:
    """How a part of a BERT layer ends: a product, dropout, the residual, and a norm over it."""
    return layer_norm(part.LayerNorm, x_BD + part.dropout(linear(part.dense, inner)))


def _first_position(embeddings: Any) -> int:
    """RoBERTa and its kin count positions from behind the padding index; BERT has none."""
    return int(getattr(embeddings, "padding_idx", -1)) + 1
