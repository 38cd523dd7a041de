"""T5's encoder for inference on a CPU: its weights folded together, and laid out once for the machine.

Letters as in encoder.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UserError
from urg.encoder import ROWS, chunks, position_bias
from urg.t5_layers import Runs, attend, filled_up

CHUNK_TOKENS = 3072
"""Tokens that are encoded at once at most: what a layer makes of more of them leaves the caches, and is so large that
each product's result is new memory from the system."""


class FrozenEncoder:
    """A T5 encoder stack (gated or plain feed-forward), frozen for inference on a CPU. It takes the linear layers'
    weights over: the stack itself keeps what is not laid out, and can neither encode nor be saved any more.

    What the stack does between its products is folded into them: the weight of each RMS norm into the products that
    follow it, query, key and value into one, gate and residual into the product before them (oneDNN's post-operations).
    Products are in the weights' dtype; norms and the residual stream are in fp32.
    """

    def __init__(self, stack: Any, budget: int) -> None:
        """budget: real tokens that are encoded at once; bounds memory, changes no result."""
        self._stack, self._budget = stack, min(budget, CHUNK_TOKENS)
        self._blocks = []
        for block in stack.block:
            self._blocks.append(_FrozenBlock(block))
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    _vacate(part)
        self._last_weight = stack.final_layer_norm.weight.detach().float()
        self._epsilon = stack.final_layer_norm.variance_epsilon

    @torch.inference_mode()
    def __call__(self, tokens_S: Tensor, lengths: list[int]) -> Tensor:
        """Packed ids [S] of candidates of these lengths → packed states, fp32 [S, D], in the same order."""
        bias_HLL = position_bias(self._stack, max(lengths))
        states_SD = torch.empty(len(tokens_S), len(self._last_weight))
        for place_S, runs in chunks(lengths, self._budget):
            x_SD = self._stack.embed_tokens(tokens_S[filled_up(place_S, ROWS)]).float()
            for block in self._blocks:
                x_SD = block(x_SD, runs, bias_HLL)
            x_SD = F.rms_norm(x_SD[: len(place_S)], x_SD.shape[-1:], self._last_weight, self._epsilon)
            states_SD[place_S] = x_SD
        return states_SD


class _FrozenBlock:
    """One layer, its weights folded and laid out."""

    def __init__(self, block: Any) -> None:
        attention, feed_forward = block.layer[0], block.layer[-1]
        own, dense = attention.SelfAttention, feed_forward.DenseReluDense
        self._heads, self._epsilon, self._dtype = own.n_heads, attention.layer_norm.variance_epsilon, own.q.weight.dtype
        qkv = torch.cat([_folded(layer, attention.layer_norm) for layer in (own.q, own.k, own.v)])
        self._qkv, self._out = FrozenProduct(qkv, self._dtype), FrozenProduct(own.o.weight, self._dtype)
        gated = hasattr(dense, "wi_0")
        first = _folded(dense.wi_0 if gated else dense.wi, feed_forward.layer_norm)
        self._inner = FrozenProduct(first, self._dtype, dense.act)
        self._gate = FrozenProduct(_folded(dense.wi_1, feed_forward.layer_norm), self._dtype) if gated else None
        self._wo = FrozenProduct(dense.wo.weight, self._dtype)

    def __call__(self, x_SD: Tensor, runs: Runs, bias_HLL: Tensor) -> Tensor:
        """x: fp32 [S, D] → the same after the layer."""
        q_SHE, k_SHE, v_SHE = self._qkv(self._normed(x_SD)).unflatten(-1, (3, self._heads, -1)).unbind(1)
        x_SD = self._out.plus(x_SD, attend(q_SHE, k_SHE, v_SHE, runs, bias_HLL).flatten(1))
        normed_SD = self._normed(x_SD)
        inner_SF = self._inner(normed_SD)
        if self._gate is not None:
            inner_SF = self._gate.times(inner_SF, normed_SD)
        return self._wo.plus(x_SD, inner_SF)

    def _normed(self, x_SD: Tensor) -> Tensor:
        return F.rms_norm(x_SD, x_SD.shape[-1:], None, self._epsilon).to(self._dtype)


class FrozenProduct:
    """x Wᵀ with a weight that oneDNN has laid out for this machine, and what it can do in the same pass.

    The operators are private to PyTorch: where they are missing, public ones give the same.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, activation: Any = None, bias: Tensor | None = None) -> None:
        """weight: [out, in]. activation: applied to the product. bias: [out], added before it."""
        plain = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        laid_out = _laid_out(plain)
        self._weight, self._is_laid_out = (plain, False) if laid_out is None else (laid_out, True)
        fused = self._is_laid_out and activation is not None and _is_tanh_gelu(activation)
        self._post = ("gelu", "tanh") if fused else ("none", "")
        self._activation: Any = None if fused else activation

    def __call__(self, x: Tensor) -> Tensor:
        """activation(x Wᵀ + b)."""
        if self._is_laid_out:
            name, algorithm = self._post
            y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], algorithm)
        else:
            y = F.linear(x, self._weight, self._bias)
        return y if self._activation is None else self._activation(y)

    def plain_weight(self) -> Tensor:
        """W as it was, [out, in]."""
        return self._weight.to_dense() if self._is_laid_out else self._weight

    def times(self, other: Tensor, x: Tensor) -> Tensor:
        """other · (x Wᵀ + b), element by element."""
        if not self._is_laid_out:
            return other * self(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, "mul")

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x Wᵀ + b, in the residual's dtype."""
        if not self._is_laid_out or residual.dtype != x.dtype:
            return residual + self(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")


def freeze_linears(module: nn.Module, gives_up: Collection[nn.Module] = ()) -> None:
    """For inference on a CPU: every linear layer below the module multiplies by a weight that is laid out once. Changes
    to the weights after this call are not seen.

    gives_up: layers whose weight is then held in that layout alone, but where another part has the same one, as a tied
    embedding does. No code may read the weights of these but by `FrozenLinear.plain_weight`.
    """
    owners = Counter(id(own) for part in module.modules() for own in part.parameters(recurse=False))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and not child.weight.is_meta:
                frozen = FrozenLinear(child)
                setattr(parent, name, frozen)
                if child in gives_up and owners[id(child.weight)] == 1:
                    _vacate(frozen)


class FrozenLinear(nn.Linear):
    """The same layer, by a product that is laid out for the machine."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._product = FrozenProduct(layer.weight, layer.weight.dtype, bias=layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + b."""
        return self._product(x)

    def plain_weight(self) -> Tensor:
        """The weight as it was, [out, in]."""
        return self._product.plain_weight() if self.weight.is_meta else self.weight


def _vacate(layer: nn.Linear) -> None:
    """Give the weight up, for it is held in another layout: its shape stays, on `meta`, and whoever would save it is
    told."""
    layer.weight = nn.Parameter(layer.weight.detach().to("meta"), requires_grad=False)
    layer.register_state_dict_pre_hook(_refuse)
    layer.register_load_state_dict_pre_hook(_refuse)


def _refuse(*_: Any) -> None:
    raise UserError(
        "a frozen model can be neither saved nor loaded into, for its weights are laid out for this machine: "
        "load its folder again."
    )


def _laid_out(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own layout; None where this PyTorch or machine cannot, for its dtype."""
    try:
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        x = torch.zeros(1, weight.shape[1], dtype=weight.dtype)
        torch.ops.mkldnn._linear_pointwise(x, laid_out, None, "none", [], "")
    except (RuntimeError, AttributeError, TypeError):
        return None
    return laid_out


def _folded(layer: Any, norm: Any) -> Tensor:
    """The layer's weight [out, D] with that of the RMS norm before it multiplied in."""
    return layer.weight.detach().float() * norm.weight.detach().float()


def _is_tanh_gelu(activation: Any) -> bool:
    x = torch.linspace(-4, 4, 33)
    return torch.allclose(activation(x), F.gelu(x, approximate="tanh"), atol=1e-6)
