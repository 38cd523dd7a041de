"""A tiny random network of each architecture, away from its initial state, and the plain way to score with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from urg.backbones import BACKBONES, backbone_of
from urg.model import URG

VOCAB = 40


def bart(**settings: Any) -> Any:
    """Positions for 12 tokens: rounding a chunk's length up to 16 would be too many."""
    shape = {"d_model": 12, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "max_position_embeddings": 12}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 3}
    own = {"encoder_layers": 2, "decoder_layers": 3, **shape, **heads, **settings}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCAB, **own))


def t5gemma(**settings: Any) -> Any:
    """Two heads of key and value for four of queries; caps and windows that are felt."""
    shape = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"vocab_size": VOCAB, "head_dim": 6, "sliding_window": 3, "query_pre_attn_scalar": 5, **settings}
    caps = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
    encoder, decoder = ({**shape, **caps, "num_hidden_layers": layers} for layers in (2, 3))
    tied = settings.get("tie_word_embeddings", True)
    config = T5GemmaConfig(encoder=encoder, decoder=decoder, vocab_size=VOCAB, tie_word_embeddings=tied)
    return T5GemmaForConditionalGeneration(config)


def bert(kind: type = BertConfig, layers: int = 2, **settings: Any) -> Any:
    """An encoder of the BERT family as a configuration."""
    own = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": layers, "num_attention_heads": 3}
    return kind(vocab_size=VOCAB, **{"max_position_embeddings": 12, **own, **settings})


def encoder_decoder(kind: type = BertConfig, first_positions: int = 0, **tokens: int) -> Any:
    """Both halves of one kind."""
    network = BACKBONES["bert"].random(bert(kind, max_position_embeddings=12 + first_positions, **tokens))
    for config in (network.config, network.generation_config):
        config.pad_token_id, config.eos_token_id = tokens.get("pad_token_id", 0), 1
        config.decoder_start_token_id = 2
    return network


NETWORKS: dict[str, Callable[[], Any]] = {
    "bart": bart,
    "bart-scaled": lambda: bart(scale_embedding=True, activation_function="relu", decoder_layers=1),
    "t5gemma": t5gemma,
    "t5gemma-biased": lambda: t5gemma(attention_bias=True, tie_word_embeddings=False),
    "bert": encoder_decoder,
    "roberta": lambda: encoder_decoder(RobertaConfig, 1, pad_token_id=0),
}


def roughen(network: nn.Module) -> None:
    """Norms that are not 1, biases that are not 0, and attention that is not nearly even."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        elif parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            crosses = any(part in name for part in ("encoder_attn", "cross_attn", "crossattention"))
            parameter.data.mul_(30 if crosses else 10)


class Plain:
    """The method by the library's own modules: one candidate and one query at a time, eager attention, no padding."""

    def __init__(self, model: URG, dtype: torch.dtype = torch.float32) -> None:
        self.network = copy.deepcopy(model.network).to(dtype).eval()
        self.decoder = self.network.decoder if hasattr(self.network, "decoder") else self.network.model.decoder
        self.encoder = self.network.encoder if hasattr(self.network, "encoder") else self.network.model.encoder
        for stack in (self.encoder, self.decoder):
            stack.set_attn_implementation("eager")
        self.start_id = backbone_of(self.network).start_id

    def states(self, query: list[Tensor]) -> list[Tensor]:
        """[L_i, D] of each candidate, encoded alone."""
        return [self.encoder(input_ids=ids.unsqueeze(0)).last_hidden_state[0] for ids in query]

    def scores(self, states: list[Tensor]) -> Tensor:
        """[N]: the mean of the first step's cross-attention over layers, heads and each candidate's tokens."""
        output = self.decoder(
            input_ids=torch.tensor([[self.start_id]]),
            encoder_hidden_states=torch.cat(states).unsqueeze(0),
            output_attentions=True,
        )
        assert len(output.cross_attentions) == len(backbone_of(self.network).layers)
        weights_L = torch.stack(output.cross_attentions).mean((0, 1, 2, 3))
        return torch.stack([part.mean() for part in weights_L.split([len(state) for state in states])])

    def logits(self, states: list[Tensor], target: list[int]) -> Tensor:
        """[T, V]: teacher-forced, given these candidates and nothing else."""
        return self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=torch.cat(states).unsqueeze(0)),
            decoder_input_ids=torch.tensor([[self.start_id, *target[:-1]]]),
            use_cache=False,
        ).logits[0]

    def greedy(self, states: list[Tensor], steps: int, end_ids: set[int]) -> list[int]:
        """The likeliest token, again and again, by whole forward passes."""
        text: list[int] = []
        while len(text) < steps and not (text and text[-1] in end_ids):
            text.append(int(self.logits(states, [*text, 0])[-1].argmax()))
        return text


def save_bert(folder: Path, texts: Iterable[str] = (), **settings: Any) -> Path:
    """A BERT-like folder, as MiniLM's is: an encoder with a pooler, random weights, and a WordPiece tokenizer made from
    `texts`."""
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=500, show_progress=False)
    BertTokenizer(vocab=pieces.get_vocab()).save_pretrained(str(folder))
    own = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **settings}
    BertModel(BertConfig(vocab_size=pieces.get_vocab_size(), **own)).save_pretrained(str(folder))
    return folder
