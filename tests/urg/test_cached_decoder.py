"""The cached decoder writes what the library's does, from one copy of a row's keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from urg.cached_decoder import CachedDecoder
from urg.layout import Layout
from urg.model import URG

Pack = Callable[[list[list[Tensor]]], tuple[Tensor, Layout]]
FAMILIES = ["t5", "flan", "mt5", "byt5"]
ROWS, LENGTH, TOKENS = 3, 7, 5


def _decoded(stack: Any, ids_BT: Tensor, states_BLD: Tensor, mask_BL: Tensor, at_once: int) -> Tensor:
    """The states of a stack that reads so many tokens at once, and keeps what it has read."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    kept = {"encoder_hidden_states": states_BLD, "encoder_attention_mask": mask_BL, "past_key_values": cache}
    parts = [stack(input_ids=part, use_cache=True, **kept).last_hidden_state for part in ids_BT.split(at_once, dim=1)]
    return torch.cat(parts, dim=1)


def _read(model: URG, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids to decode, candidates' states and their ragged mask."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(2, 30, (ROWS, TOKENS), generator=generator)
    states_BLD = torch.randn(ROWS, LENGTH, model.backbone.width, generator=generator)
    return ids_BT, states_BLD, torch.arange(LENGTH) < torch.tensor([[LENGTH], [2], [4]])


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_states_are_the_librarys_one_token_at_a_time_or_several(family: str, build: Any) -> None:
    model = build(family)
    plain, read = model.t5.decoder, _read(model)
    expected_BTD = _decoded(plain, *read, at_once=1)
    for at_once in (1, 2, TOKENS):
        found_BTD = _decoded(CachedDecoder(plain), *read, at_once=at_once)
        torch.testing.assert_close(found_BTD, expected_BTD, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_in_bf16_it_is_nearer_to_fp32_than_the_library(build: Any) -> None:
    """Its residual stream and its norms stay in fp32."""
    model = build()
    ids_BT, states_BLD, mask_BL = _read(model)
    exact_BTD = _decoded(model.t5.decoder, ids_BT, states_BLD, mask_BL, at_once=1)
    stack, coarse_BLD = model.bfloat16().t5.decoder, states_BLD.bfloat16()
    both = (_decoded(one, ids_BT, coarse_BLD, mask_BL, at_once=1).float() for one in (stack, CachedDecoder(stack)))
    coarse, cached = both
    assert (cached - exact_BTD).norm() < (coarse - exact_BTD).norm()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_frozen_model_writes_the_same_texts(
    family: str, beams: int, build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    model = build(family)
    frozen = copy.deepcopy(model).freeze()
    tokens_S, layout = pack(queries)
    hidden_SD = model.encode(tokens_S, layout)
    selected_BN, _ = model.choose(model.rank(hidden_SD, layout), layout)
    options = {"num_beams": beams, "max_new_tokens": 9}
    texts = [one.fuse(hidden_SD, layout, selected_BN, **options) for one in (model, frozen)]
    assert torch.equal(*texts)
    assert len(set(map(tuple, texts[0].tolist()))) > 1, "all texts are one, whatever the candidates"


@torch.inference_mode()
def test_beams_share_their_rows_keys_and_values(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build().freeze()
    _, states_BLD, mask_BL = _read(model)
    seen = []
    own = model.t5.decoder.forward

    def watched(**given: Any) -> Any:
        output = own(**given)
        cross = given["past_key_values"].cross_attention_cache.layers[0].keys
        seen.append((len(given["input_ids"]), len(cross)))
        return output

    monkeypatch.setattr(model.t5.decoder, "forward", watched)
    model.backbone.generate(states_BLD, mask_BL, max_new_tokens=3, num_beams=4)
    assert seen[0] == (ROWS, ROWS)
    assert set(seen[1:]) == {(4 * ROWS, ROWS)}
