"""Products with weights in training: what goes into a product is not kept but made again in the backward pass.

A norm or an activation before a product is cheap to make again and as large as what it is made from; kept, it would be
half of a layer's memory. So only its own input is kept, which something else keeps anyway.

On a CPU in fp32 the product is oneDNN's, but on Intel's CPUs PyTorch's own: that is MKL's, which is faster there (by a
tenth to a half) and less than half as fast on AMD's. The choice goes by the CPU's maker: one that is measured anew in
each process would make a resumed run differ in its last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def product(layer: Any, x: Tensor) -> Tensor:
    """layer(x) of a linear layer without a bias, x [S, D]."""
    return products([layer], _same, x)[0]


def products(layers: list[Any], before: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """layer(before(*inputs)) of each linear layer, as one product. No layer has a bias; `before` draws nothing."""
    if is_partitioned(layers[0]):
        x_SD = before(*inputs)
        return tuple(layer(x_SD) for layer in layers)
    weights = [layer.weight for layer in layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    y: Tensor = _Product.apply(before, weight, *inputs)
    return y.split([len(own) for own in weights], dim=-1)


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 has spread this module's weights over the workers: then only its own call has them."""
    return hasattr(next(module.parameters()), "ds_id")


class _Product(torch.autograd.Function):
    """f(inputs) Wᵀ."""

    @staticmethod
    def forward(ctx: Any, before: Callable[..., Tensor], weight: Tensor, *inputs: Tensor) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(weight, *inputs)
        return _times(before(*inputs), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(needs) for x, needs in zip(inputs, needed, strict=True)]
            x_SD = ctx.before(*inputs)
        of_weight = _times(gradient.t(), x_SD.detach().t()) if ctx.needs_input_grad[1] else None
        if not any(needed):
            return None, of_weight, *(None for _ in inputs)
        wanted = [x for x, needs in zip(inputs, needed, strict=True) if needs]
        found = iter(torch.autograd.grad(x_SD, wanted, _times(gradient, weight.t())))
        return None, of_weight, *(next(found) if needs else None for needs in needed)


def _same(x: Tensor) -> Tensor:
    return x


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() and _prefers_onednn():
        return _onednn(a, b)
    return F.linear(a, b)


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ. The operator is private to PyTorch."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # type: ignore[no-any-return]


@functools.cache
def _prefers_onednn() -> bool:
    return not (torch.backends.mkl.is_available() and _is_intel()) and _has_onednn()


def _is_intel(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether Linux names Intel as the CPU's maker; False where it says nothing."""
    try:
        return "GenuineIntel" in Path(cpuinfo).read_text()
    except OSError:
        return False


def _has_onednn() -> bool:
    """Whether this PyTorch and machine have the operator, and it is right."""
    a, b = torch.ones(3, 5), torch.arange(20.0).view(5, 4)
    try:
        return torch.allclose(_onednn(a, b.t()), a @ b)
    except (RuntimeError, AttributeError, TypeError):
        return False
