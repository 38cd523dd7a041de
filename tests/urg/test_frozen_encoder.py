"""Linear layers that are laid out for the machine give what they gave before (the frozen encoder: test_encoder.py)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from urg.benchmarks.rankers import make_ranker
from urg.frozen_encoder import freeze_linears


@torch.inference_mode()
def test_frozen_linear_layers_give_the_same_by_the_same_parameters() -> None:
    torch.manual_seed(0)
    encoder = make_ranker("simcls", "tiny").pretrained_model
    frozen = copy.deepcopy(encoder)
    freeze_linears(frozen)
    ids_BL = torch.randint(16, 1000, (3, 11))
    assert type(frozen.encoder.layer[0].intermediate.dense) is not nn.Linear
    torch.testing.assert_close(frozen(ids_BL).last_hidden_state, encoder(ids_BL).last_hidden_state)
    assert frozen.state_dict().keys() == encoder.state_dict().keys()


def test_a_part_is_left_as_it_is() -> None:
    whole = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
    freeze_linears(whole, but=whole[1])
    assert type(whole[0]) is not nn.Linear
    assert type(whole[1][0]) is nn.Linear
