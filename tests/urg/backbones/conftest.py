"""A tiny random model of each architecture, and the plain way to score with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.urg.backbones.tiny import NETWORKS, Plain, roughen
from urg.model import URG, Settings


@pytest.fixture
def build() -> Callable[..., URG]:
    """build(name, k) → a tiny model of one of NETWORKS without dropout."""

    def make(name: str, k: int = 2) -> URG:
        network = NETWORKS[name]()
        roughen(network)
        model = URG(network, Settings(k=k)).eval()
        model.backbone.forget_habits()
        return model

    return make


@pytest.fixture
def plain() -> type[Plain]:
    """The plain way, to be made from a model."""
    return Plain
