"""A linear layer by oneDNN is the layer: same product, same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from urg import products
from urg.products import product


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_the_product_and_its_gradients_are_the_layers(rows: int) -> None:
    layer, gradient = nn.Linear(12, 20, bias=False), torch.randn(rows, 20)
    found = []
    for own in (product, lambda layer, x: layer(x)):
        x = torch.randn(rows, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layer.zero_grad()
        y = own(layer, x)
        y.backward(gradient)
        found.append((y, x.grad, layer.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_it_is_onednns_in_fp32_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(products, "_onednn", lambda a, b: asked.append(a.dtype) or a @ b.t())
    partitioned = nn.Linear(3, 2, bias=False)
    partitioned.weight.ds_id = 0
    for is_there in (True, False):
        monkeypatch.setattr(products, "_prefers_onednn", lambda is_there=is_there: is_there)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            product(nn.Linear(3, 2, bias=False, dtype=dtype), torch.zeros(4, 3, dtype=dtype))
        product(partitioned, torch.zeros(4, 3))
    assert asked == [torch.float32]


@pytest.mark.parametrize(("maker", "prefers"), [("GenuineIntel", False), ("AuthenticAMD", True)])
def test_the_cpus_maker_chooses(maker: str, prefers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    is_intel = products._is_intel
    monkeypatch.setattr(products, "_is_intel", lambda: is_intel(str(cpuinfo)))
    monkeypatch.setattr(products, "_has_onednn", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products._prefers_onednn.__wrapped__() is prefers
    assert not is_intel(str(tmp_path / "absent"))
