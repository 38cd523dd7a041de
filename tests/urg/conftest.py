"""Tiny models of each T5 family, ragged queries, and a slow derivation of the method by eager attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from urg.layout import Layout
from urg.model import URG, Settings

torch.set_num_threads(1)

Query = list[Tensor]
"""The token ids of each candidate."""

VOCAB = 40
SHAPE = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3}  # heads × d_kv ≠ d_model


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _roughen(t5: nn.Module) -> None:
    """Away from the initial state, where norms are 1, attention nearly even, and texts hardly depend on candidates."""
    for name, parameter in t5.named_parameters():
        if "layer_norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        if "EncDecAttention.q" in name or "EncDecAttention.o" in name:
            parameter.data.mul_(4)


def _t5(family: str) -> T5ForConditionalGeneration:
    """t5: v1.0 (relu, tied and scaled). flan: v1.1 (gated, distinct head). mt5. byt5: v1.1, shallow decoder."""
    if family == "t5":
        return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **SHAPE))
    if family == "flan":
        return URG.from_scratch(VOCAB, Settings(), tie_word_embeddings=False, **SHAPE).t5
    if family == "mt5":
        t5 = MT5ForConditionalGeneration(MT5Config(vocab_size=VOCAB, decoder_start_token_id=0, **SHAPE))
    else:
        shape = SHAPE | {"num_layers": 3, "num_decoder_layers": 1}
        config = T5Config(vocab_size=384, decoder_start_token_id=0, feed_forward_proj="gated-gelu", **shape)
        config.scale_decoder_outputs = False
        t5 = T5ForConditionalGeneration(config)
    t5.lm_head.weight = nn.Parameter(torch.randn_like(t5.lm_head.weight) / 4)
    return t5


@pytest.fixture
def build() -> Callable[..., URG]:
    """build(family, k) → a tiny model without dropout, its weights away from the initial state."""

    def make(family: str = "flan", k: int = 2) -> URG:
        t5 = _t5(family)
        _roughen(t5)
        return URG(t5, Settings(k=k)).eval()

    return make


@pytest.fixture
def pack() -> Callable[[Sequence[Query]], tuple[Tensor, Layout]]:
    """pack(queries) → (packed tokens [S], their layout)."""

    def make(queries: Sequence[Query]) -> tuple[Tensor, Layout]:
        return torch.cat([ids for query in queries for ids in query]), Layout.of([[len(i) for i in q] for q in queries])

    return make


@pytest.fixture
def queries() -> list[Query]:
    """Five queries with 5, 1, 3, 2 and 4 candidates of 1 to 11 tokens: N < K, N = K, N = K + 1 and more for K = 2."""
    lengths = ([5, 3, 7, 4, 6], [2], [4, 9, 3], [1, 11], [2, 2, 5, 2])
    generator = torch.Generator().manual_seed(1)
    return [[torch.randint(3, VOCAB, (n,), generator=generator) for n in row] for row in lengths]


@pytest.fixture
def targets() -> Tensor:
    """int64 [5, 4]: a reference for each of `queries`."""
    return torch.randint(3, VOCAB, (5, 4), generator=torch.Generator().manual_seed(2))


class Eager:
    """The method as its equations say it: one query, one candidate, one token at a time, in double precision.

    Differentiable: `t5` is a copy with the same parameter names, so that gradients can be compared too.
    """

    def __init__(self, model: URG) -> None:
        self.t5 = copy.deepcopy(model.t5).double().eval()
        self.t5.encoder.set_attn_implementation("eager")
        self.t5.decoder.set_attn_implementation("eager")

    def states(self, query: Query) -> list[Tensor]:
        """Equation 1: H_e^i [L_i, D] of each candidate, encoded alone."""
        return [self.t5.encoder(input_ids=ids.unsqueeze(0)).last_hidden_state[0] for ids in query]

    def scores(self, states: list[Tensor]) -> list[Tensor]:
        """Equations 5 and 6: scalars s_k."""
        start = torch.tensor([[self.t5.config.decoder_start_token_id]])
        output = self.t5.decoder(
            input_ids=start, encoder_hidden_states=torch.cat(states).unsqueeze(0), output_attentions=True
        )
        assert len(output.cross_attentions) == self.t5.config.num_decoder_layers
        scores, b = [], 0
        for state in states:
            total = torch.zeros((), dtype=torch.float64)
            for j in range(b, b + len(state)):
                mean = torch.zeros((), dtype=torch.float64)
                for layer_1H1L in output.cross_attentions:
                    for head in range(layer_1H1L.shape[1]):
                        mean = mean + layer_1H1L[0, head, 0, j] / (len(output.cross_attentions) * layer_1H1L.shape[1])
                total = total + mean
            scores.append(total / len(state))
            b += len(state)
        return scores

    def logits(self, states: list[Tensor], target: list[int]) -> Tensor:
        """z of equation 8, [T, V]: the decoder sees nothing but these candidates, concatenated."""
        inputs = torch.tensor([[self.t5.config.decoder_start_token_id, *target[:-1]]])
        hidden = self.t5.decoder(input_ids=inputs, encoder_hidden_states=torch.cat(states).unsqueeze(0))
        scale = self.t5.config.d_model**-0.5 if getattr(self.t5.config, "scale_decoder_outputs", False) else 1.0
        return (hidden.last_hidden_state[0] * scale) @ self.t5.lm_head.weight.T

    def greedy(self, states: list[Tensor], steps: int) -> list[int]:
        """The likeliest token, again and again, by whole forward passes; stops after </s>."""
        text: list[int] = []
        while len(text) < steps and text[-1:] != [self.t5.config.eos_token_id]:
            text.append(int(self.logits(states, [*text, 0])[-1].argmax()))
        return text


@pytest.fixture
def eager() -> type[Eager]:
    """The slow derivation, to be made from a model."""
    return Eager
