"""DeBERTa's attention by SDPA is the library's, and frozen rankers score as they did before."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.urg.systems.tiny import ROWS, config, make_ranker, roughen
from urg.systems.deberta import use_sdpa
from urg.systems.pair_ranker import PairRanker
from urg.systems.simcls import SimCLS

VARIANTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "projections of their own": {"share_att_key": False},
    "no buckets": {"position_buckets": -1},
    "a convolution": {"conv_kernel_size": 3},
}


def encoder(**changes: Any) -> Any:
    own = config("deberta-v2", 50)
    for name, value in changes.items():
        setattr(own, name, value)
    torch.manual_seed(0)
    model = AutoModel.from_config(own).eval()
    roughen(model)
    return model


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.inference_mode()
def test_the_states_of_real_tokens_are_the_librarys(changes: dict[str, Any]) -> None:
    """In double precision, at lengths far beyond the distances that have buckets of their own. (The library's scale is
    a square root in fp32.)"""
    model = encoder(**changes).double()
    exchanged = copy.deepcopy(model)
    use_sdpa(exchanged)
    assert all(
        type(a.attention.self) is not type(b.attention.self)
        for a, b in zip(model.encoder.layer, exchanged.encoder.layer, strict=True)
    )
    assert exchanged.state_dict().keys() == model.state_dict().keys()
    ids_CL, length_C1 = torch.randint(1, 50, (4, 60)), torch.tensor([[60], [59], [17], [1]])
    mask_CL = torch.arange(60) < length_C1
    for ids, mask in ((ids_CL, mask_CL.long()), (ids_CL[:, :1], None), (ids_CL[:2], None)):
        states, expected = (own(ids, attention_mask=mask).last_hidden_state for own in (exchanged, model))
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        torch.testing.assert_close(states[real], expected[real], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [{"relative_attention": False}, {"pos_att_type": ["c2p"]}])
def test_other_attention_stays_the_librarys(changes: dict[str, Any]) -> None:
    model = encoder(**changes)
    kinds = [type(layer.attention.self) for layer in model.encoder.layer]
    use_sdpa(model)
    assert [type(layer.attention.self) for layer in model.encoder.layer] == kinds


def test_to_exchange_it_twice_is_to_exchange_it_once() -> None:
    model = encoder()
    use_sdpa(model)
    own = [layer.attention.self for layer in model.encoder.layer]
    use_sdpa(model)
    assert all(layer.attention.self is first for layer, first in zip(model.encoder.layer, own, strict=True))


@pytest.mark.parametrize("family", ["deberta-v2", "t5", "bert"])
@torch.inference_mode()
def test_a_frozen_ranker_gives_the_same_scores(family: str) -> None:
    """DeBERTa by SDPA, T5 packed by the frozen encoder, any other by linear layers that are laid out."""
    for model in (
        make_ranker(PairRanker, family),
        make_ranker(SimCLS, family),
        make_ranker(SimCLS, family, pooling="mean"),
    ):
        frozen = copy.deepcopy(model).freeze()
        assert (frozen.frozen_encoder is not None) == (family == "t5")
        for scores, expected in zip(frozen.scores(ROWS), model.scores(ROWS), strict=True):
            np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["deberta-v2", "t5"])
@torch.inference_mode()
def test_a_frozen_ranker_scores_in_bf16(family: str) -> None:
    model = make_ranker(SimCLS, family)
    scores = copy.deepcopy(model).bfloat16().freeze().scores(ROWS)
    for own, expected in zip(scores, model.scores(ROWS), strict=True):
        np.testing.assert_allclose(own, expected, atol=0.1)
