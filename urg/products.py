"""A linear layer's product in training: on a CPU in fp32 by oneDNN, for PyTorch's own is MKL's, which on AMD's CPUs is
less than half as fast; elsewhere, and in other dtypes, the layer itself.

The choice is fixed: one that is measured anew in each process would make a resumed run differ in its last bits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def product(layer: Any, x: Tensor) -> Tensor:
    """layer(x) of a linear layer, with gradients."""
    weight = layer.weight
    suits = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.dim() == 2 and x.numel() > 0
    if suits and layer.bias is None and not is_partitioned(layer) and _has_onednn():
        return _Product.apply(x, weight)  # type: ignore[no-any-return]
    return layer(x)  # type: ignore[no-any-return]


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 has spread this module's weights over the workers: then only its own call has them."""
    return hasattr(next(module.parameters()), "ds_id")


class _Product(torch.autograd.Function):
    """x Wᵀ, and its two gradients by the same operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _onednn(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        return of_x, _onednn(gradient.t(), x.t()) if ctx.needs_input_grad[1] else None


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ. The operator is private to PyTorch."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # type: ignore[no-any-return]


@functools.cache
def _has_onednn() -> bool:
    """Whether this PyTorch and machine have the operator, and it is right."""
    a, b = torch.randn(3, 5), torch.randn(5, 4)
    try:
        return torch.allclose(_onednn(a, b.t()), a @ b, atol=1e-5)
    except (RuntimeError, AttributeError, TypeError):
        return False
