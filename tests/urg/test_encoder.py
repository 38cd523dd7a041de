"""The packed encoder is the plain one: same states, same gradients, whatever the budget and the company."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from urg import frozen_encoder
from urg.encoder import ROWS, chunks, computed_tokens, encode_packed, encode_padded
from urg.frozen_encoder import FrozenEncoder
from urg.layout import Layout
from urg.training.task import set_dropout

Pack = Callable[[list[list[Tensor]]], tuple[Tensor, Layout]]
FAMILIES = ["t5", "flan", "mt5", "byt5"]


def _one_by_one(stack: Any, queries: list[list[Tensor]]) -> Tensor:
    """The stack's own forward pass over each candidate alone: no padding, no company."""
    return torch.cat([stack(input_ids=ids.unsqueeze(0)).last_hidden_state[0] for query in queries for ids in query])


@pytest.mark.parametrize("encode", [encode_packed, encode_padded])
@pytest.mark.parametrize("budget", [1, 9, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_candidate_alone(
    family: str, budget: int, encode: Any, build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    stack = build(family).t5.encoder
    tokens_S, layout = pack(queries)
    states_SD = encode(stack, tokens_S, layout.candidate_lengths, budget)
    torch.testing.assert_close(states_SD, _one_by_one(stack, queries), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_each_candidate_alone(
    family: str, checkpointing: bool, build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    model = build(family).double()
    stack = model.t5.encoder
    for module in stack.modules():  # in training mode, which checkpointing asks for, but without dropout
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    tokens_S, layout = pack(queries)
    weight_SD = torch.randn(len(tokens_S), model.t5.config.d_model, dtype=torch.float64)
    (_one_by_one(stack, queries) * weight_SD).sum().backward()
    expected = {name: p.grad.clone() for name, p in stack.named_parameters() if p.grad is not None}
    stack.zero_grad()
    if checkpointing:
        model.t5.activation_checkpointing_enable()
    stack.train()
    assert stack.gradient_checkpointing is checkpointing
    (encode_packed(stack, tokens_S, layout.candidate_lengths, 20) * weight_SD).sum().backward()
    assert len(expected) > 10
    for name, parameter in stack.named_parameters():
        if name in expected:
            largest = expected[name].abs().max()  # the library takes the mean of squares in fp32, whatever the dtype
            torch.testing.assert_close(parameter.grad / largest, expected[name] / largest, rtol=0, atol=1e-6, msg=name)


def test_dropout_is_drawn_in_training_only(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    stack = build().t5.encoder
    tokens_S, layout = pack(queries)
    once, again = (encode_packed(stack.train(), tokens_S, layout.candidate_lengths, 99) for _ in range(2))
    assert not torch.equal(once, again)
    once, again = (encode_packed(stack.eval(), tokens_S, layout.candidate_lengths, 99) for _ in range(2))
    assert torch.equal(once, again)


def test_each_dropout_of_the_stack_is_drawn(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    """One at a time: embedding and last norm (one layer for both), attention weights, and what layers end in."""
    tokens_S, layout = pack(queries)
    model = build()
    stack = model.t5.encoder
    set_dropout(stack, 0.0)
    owners = [module for module in stack.modules() if isinstance(module, torch.nn.Dropout)]
    owners += [block.layer[0].SelfAttention for block in stack.block]
    assert len(owners) == 1 + 4 * len(stack.block)
    still = encode_packed(stack.train(), tokens_S, layout.candidate_lengths, 99)
    for owner in owners:
        rate = "p" if isinstance(owner, torch.nn.Dropout) else "dropout"
        setattr(owner, rate, 0.5)
        assert not torch.equal(encode_packed(stack, tokens_S, layout.candidate_lengths, 99), still)
        setattr(owner, rate, 0.0)
    called = []
    stack.dropout.register_forward_hook(lambda *_: called.append(1))
    encode_packed(stack, tokens_S, layout.candidate_lengths, 10_000)
    assert len(called) == 2, "after the embedding, and after the last norm"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_chunks_hold_every_token_once_in_runs_of_one_length(lengths: list[int], budget: int) -> None:
    parts = list(chunks(lengths, budget))
    assert sorted(torch.cat([place_S for place_S, _ in parts]).tolist()) == list(range(sum(lengths)))
    for place_S, runs in parts:
        assert len(place_S) == sum(count * length for count, length in runs)
        assert len(place_S) <= budget or sum(count for count, _ in runs) == 1
        assert len({length for _, length in runs}) == len(runs)
    assert computed_tokens(lengths, 10**6, packed=True) - sum(lengths) < ROWS


@pytest.mark.parametrize("operators", ["oneDNN's", "public ones"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_encoder_gives_the_same_states_and_ranking(
    family: str,
    operators: str,
    build: Any,
    pack: Pack,
    queries: list[list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if operators == "public ones":
        monkeypatch.setattr(frozen_encoder, "_laid_out", lambda weight: None)
    model = build(family)
    tokens_S, layout = pack(queries)
    with torch.inference_mode():
        plain_SD = model.encode(tokens_S, layout)
        scores_BN = model.rank(plain_SD, layout)
        frozen_SD = model.freeze().encode(tokens_S, layout)
        torch.testing.assert_close(frozen_SD, plain_SD, rtol=1e-5, atol=1e-5)
        frozen_BN = model.rank(frozen_SD, layout)
    torch.testing.assert_close(frozen_BN, scores_BN, rtol=1e-5, atol=0)
    assert torch.equal(frozen_BN.argsort(dim=1, stable=True), scores_BN.argsort(dim=1, stable=True))


def test_the_frozen_encoder_in_bf16_is_nearer_to_fp32_than_a_stack_in_bf16(
    build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    """Its residual stream stays in fp32."""
    model = build()
    tokens_S, layout = pack(queries)
    with torch.inference_mode():
        exact_SD = model.encode(tokens_S, layout)
        stack = model.bfloat16().t5.encoder
        coarse_SD = encode_padded(stack, tokens_S, layout.candidate_lengths, 10_000).float()
        frozen_SD = model.freeze().encode(tokens_S, layout)
    assert frozen_SD.dtype == torch.float32
    assert (frozen_SD - exact_SD).norm() < (coarse_SD - exact_SD).norm()


def test_a_frozen_model_does_not_see_changes_and_fuses_in_its_own_dtype(
    build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    model = build().bfloat16().freeze()
    tokens_S, layout = pack(queries)
    before_SD = model.encode(tokens_S, layout)
    model.t5.encoder.block[0].layer[0].layer_norm.weight.data.zero_()
    assert torch.equal(model.encode(tokens_S, layout), before_SD)
    selected_BN, _ = model.choose(model.rank(before_SD, layout), layout)
    ids_BT = model.fuse(before_SD, layout, selected_BN, max_new_tokens=3)
    assert ids_BT.shape[0] == len(queries)


def test_the_budget_of_a_frozen_encoder_does_not_matter(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    stack = build().t5.encoder
    tokens_S, layout = pack(queries)
    one, many = (
        FrozenEncoder(copy.deepcopy(stack), budget)(tokens_S, layout.candidate_lengths) for budget in (10_000, 5)
    )
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)
