"""The parts of a T5 layer: their gradients are the numerical ones, what is made again in the backward pass included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5LayerFF

from urg.t5_layers import feed_forward, self_attention
from urg.training.task import set_dropout

RUNS = [(2, 3), (1, 4)]  # and two rows of filling


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("family", ["t5", "flan"])
def test_gradients_are_the_numerical_ones(family: str, rate: float, build: Any) -> None:
    model = build(family).double().train()
    set_dropout(model, rate)
    block = model.t5.encoder.block[1]
    bias_HLL = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    x_SD = torch.randn(12, 16, dtype=torch.float64, requires_grad=True)

    def layer(x_SD: torch.Tensor, bias_HLL: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)  # the same masks for each evaluation
        return feed_forward(block.layer[1], self_attention(block.layer[0], x_SD, RUNS, bias_HLL))[:10]

    assert torch.autograd.gradcheck(layer, (x_SD, bias_HLL, *block.parameters()), atol=1e-6)


def test_dropout_within_the_feed_forward_layer_spares_its_share_and_scales_it_up() -> None:
    config = T5Config(d_model=64, d_ff=64, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    part, x_SD = T5LayerFF(config).train(), torch.randn(50, 64)
    torch.nn.init.eye_(part.DenseReluDense.wo.weight)
    whole_SF = feed_forward(part, x_SD) - x_SD
    part.DenseReluDense.dropout.p = 0.25
    share_SF = (feed_forward(part, x_SD) - x_SD)[whole_SF.abs() > 1e-3] / whole_SF[whole_SF.abs() > 1e-3]
    kept = share_SF.abs() > 0.5
    torch.testing.assert_close(share_SF[kept], torch.full_like(share_SF[kept], 4 / 3), rtol=0, atol=1e-2)
    assert share_SF[~kept].abs().max() < 1e-2
    assert 0.7 < kept.float().mean() < 0.8
