"""Linear layers that are laid out for the machine give what they gave before (the frozen encoder: test_encoder.py; how
much memory the weights take: test_memory.py)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from data_pipeline.errors import UserError
from urg import frozen_encoder
from urg.benchmarks.rankers import make_ranker
from urg.frozen_encoder import FrozenLinear, freeze_linears


@torch.inference_mode()
def test_frozen_linear_layers_give_the_same_by_the_same_parameters() -> None:
    torch.manual_seed(0)
    encoder = make_ranker("simcls", "tiny").pretrained_model
    frozen = copy.deepcopy(encoder)
    freeze_linears(frozen)
    ids_BL = torch.randint(16, 1000, (3, 11))
    assert type(frozen.encoder.layer[0].intermediate.dense) is FrozenLinear
    torch.testing.assert_close(frozen(ids_BL).last_hidden_state, encoder(ids_BL).last_hidden_state)
    own = frozen.state_dict()
    assert all(own[name] is not None and own[name].equal(weight) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize("operators", ["oneDNN's", "public ones"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 48), (130, 300), (2048, 768)])
def test_the_weight_can_be_had_as_it_was(
    shape: tuple[int, int], dtype: torch.dtype, operators: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if operators == "public ones":
        monkeypatch.setattr(frozen_encoder, "_laid_out", lambda weight: None)
    layer = nn.Linear(*shape).to(dtype)
    expected = layer.weight.detach().clone()
    whole = nn.Sequential(layer)
    freeze_linears(whole, {layer})
    assert whole[0].weight.is_meta
    assert torch.equal(whole[0].plain_weight(), expected)


def tied() -> nn.ModuleDict:
    """An embedding, a head of the same weight, and a layer of its own."""
    parts = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False), "own": nn.Linear(3, 3)}
    )
    parts["head"].weight = parts["embedding"].weight
    return parts


def test_only_a_weight_that_nothing_else_has_is_given_up() -> None:
    parts = tied()
    freeze_linears(parts, set(parts.modules()))
    assert parts["head"].weight is parts["embedding"].weight
    assert not parts["head"].weight.is_meta
    assert parts["own"].weight.is_meta
    assert (parts["own"].weight.shape, parts["own"].bias.is_meta) == ((3, 3), False)
    assert sum(own.numel() for own in parts.parameters()) == sum(own.numel() for own in tied().parameters())


def test_what_has_given_its_weight_up_is_not_frozen_again() -> None:
    parts = tied()
    freeze_linears(parts, set(parts.modules()))
    before = dict(parts.items())
    freeze_linears(parts, set(parts.modules()))
    assert all(parts[name] is part for name, part in before.items())


def test_weights_that_were_given_up_are_neither_saved_nor_loaded() -> None:
    parts, weights = tied(), tied().state_dict()
    freeze_linears(parts, set(parts.modules()))
    assert parts["head"].state_dict().keys() == {"weight"}
    for refused in (parts.state_dict, lambda: parts.load_state_dict(weights)):
        with pytest.raises(UserError, match=r"neither saved nor loaded into.*: load its folder again"):
            refused()
