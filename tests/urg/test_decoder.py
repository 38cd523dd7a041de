"""Packed, or with both passes in one row, the decoder is the library's of one pass after the other: same states, same
gradients. Keys and values are projected once; recomputing replays dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from urg.backbones.protocol import Backbone
from urg.layout import Layout
from urg.loss_config import LossConfig
from urg.model import select
from urg.objective import token_losses
from urg.training.task import set_dropout

Pack = Callable[[list[list[Tensor]]], tuple[Tensor, Layout]]
LENGTHS = [4, 0, 2, 1, 3]  # real target tokens of each query
TARGET_P = torch.cat([torch.arange(4 * b, 4 * b + length) for b, length in enumerate(LENGTHS)])


@pytest.mark.parametrize("packs", [True, False], ids=["packed, as on a CPU", "in one row, as on a GPU"])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("family", ["t5", "flan", "mt5", "byt5"])
def test_states_and_their_gradients_are_those_of_passes_apart(
    family: str,
    passes: int,
    packs: bool,
    build: Any,
    pack: Pack,
    queries: list[list[Tensor]],
    targets: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(family)
    tokens_S, layout = pack(queries)
    scores_BN = torch.rand(layout.tokens_BN.shape)
    selected_BN, last_BN = select(scores_BN, layout.mask_BN, 2)
    choices_BN = [selected_BN, selected_BN | last_BN][:passes]
    monkeypatch.setattr(model.backbone, "packs", lambda device: packs)
    found = []
    for teacher_force in (type(model.backbone).teacher_force, Backbone.teacher_force):
        model.zero_grad()
        hidden_SD = model.encode(tokens_S, layout)
        states = teacher_force(model.backbone, hidden_SD, layout, choices_BN, 2, targets, TARGET_P)
        assert [len(own) for own in states] == [len(TARGET_P)] * passes
        sum((i + 1) * model.backbone.head(own).square().sum() for i, own in enumerate(states)).backward()
        found.append((states, {name: p.grad for name, p in model.named_parameters()}))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, gradient in found[0][1].items():
        expected = found[1][1][name]
        torch.testing.assert_close(gradient / expected.norm(), expected / expected.norm(), rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("packs", [True, False], ids=["packed, as on a CPU", "in one row, as on a GPU"])
def test_both_passes_project_keys_and_values_once(
    packs: bool,
    build: Any,
    pack: Pack,
    queries: list[list[Tensor]],
    targets: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each layer's projections are asked for no more tokens than the rows have: packed, those that are read at most;
    else padding counted."""
    model = build().train()
    monkeypatch.setattr(model.backbone, "packs", lambda device: packs)
    projected: list[int] = []
    for block in model.t5.decoder.block:
        own = block.layer[1].EncDecAttention
        own.v.register_forward_pre_hook(lambda _, inputs: projected.append(inputs[0][..., 0].numel()))
    monkeypatch.setattr("urg.decoder.ROWS", 1)  # nothing is filled up
    monkeypatch.setattr("urg.decoder.product", lambda layer, x: layer(x))
    tokens_S, layout = pack(queries)
    model(tokens_S, layout, targets)
    assert len(projected) == len(model.t5.decoder.block)
    read = model.settings.k + 1
    packed, padded = sum(sum(sorted(row)[-read:]) for row in layout.lengths), len(queries) * layout.longest(read)
    assert max(projected) <= (packed if packs else padded)


def test_rows_without_a_target_leave_no_weight_out(
    build: Any, pack: Pack, queries: list[list[Tensor]], targets: Tensor
) -> None:
    """ZeRO waits for the gradient of each weight, on a worker that has only a filler row too."""
    model = build()
    nothing = torch.empty(0, dtype=torch.int64)
    output = model(*pack(queries), targets, target_P=nothing)
    losses = token_losses(output, nothing, LossConfig())
    (sum(own.sum() for own in losses.values()) + output.scores_BN.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert model.t5.lm_head.weight.grad.abs().max() == 0


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_activations_and_logits_changes_no_gradient(
    dtype: torch.dtype,
    rate: float,
    with_teacher: bool,
    build: Any,
    pack: Pack,
    queries: list[list[Tensor]],
    targets: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training mode, with dropout: what is recomputed draws the same masks again."""
    model = build().to(dtype).train()
    set_dropout(model, rate)
    model.chunk_tokens = 20
    found = []
    for recomputed in (False, True):
        if recomputed:
            model.network.activation_checkpointing_enable()
            monkeypatch.setattr("urg.model.LOGITS_AT_ONCE", 6 * model.backbone.vocab_size)
        model.zero_grad()
        torch.manual_seed(5)
        output = model(*pack(queries), targets, target_P=TARGET_P, with_teacher=with_teacher)
        losses = token_losses(output, targets.flatten()[TARGET_P], LossConfig(m=5))
        (sum(own.sum() for own in losses.values()) + 100 * output.scores_BN.square().sum()).backward()
        found.append((losses, {name: p.grad.clone() for name, p in model.named_parameters()}))
    for name, losses_P in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], losses_P, rtol=1e-5, atol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for name, gradient in found[0][1].items():
        assert (found[1][1][name] - gradient).norm() <= tolerance * gradient.norm(), name
