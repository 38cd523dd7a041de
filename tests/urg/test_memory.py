"""What ranking and fusing hold: each weight once, and of the candidates nothing that grows but their states."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.errors import UserError
from tests.urg.backbones.tiny import NETWORKS
from urg import frozen_encoder
from urg.backbones import one_token
from urg.layout import Layout
from urg.model import URG, Settings

Pack = Callable[[list[list[Tensor]]], tuple[Tensor, Layout]]
FAMILIES = ["t5", "flan", "mt5", "byt5"]


def tensors_of(root: object) -> Iterator[Tensor]:
    """Every tensor that can be reached from an object."""
    seen, todo = set(), [root]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            yield each
        todo += gc.get_referents(each)


def held_bytes(root: object) -> int:
    """Bytes of all storages that can be reached from an object; of what oneDNN has laid out, those of its numbers."""
    storages: dict[int, int] = {}
    laid_out = 0
    for tensor in tensors_of(root):
        if tensor.is_mkldnn:
            laid_out += tensor.numel() * tensor.element_size()
        elif not tensor.is_meta:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values()) + laid_out


@pytest.mark.parametrize("operators", ["oneDNN's", "public ones"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*FAMILIES, *NETWORKS])
def test_a_frozen_model_holds_each_weight_once(
    name: str, dtype: torch.dtype, operators: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a head that is the embedding, and in bf16 the decoder's layers; the encoder's last norm in fp32 too."""
    if operators == "public ones":
        monkeypatch.setattr(frozen_encoder, "_laid_out", lambda weight: None)
    model = build(name) if name in FAMILIES else URG(NETWORKS[name](), Settings()).eval()
    model.to(dtype)
    before, parameters = held_bytes(model), sum(own.numel() for own in model.parameters())
    model.freeze()
    linears = [part for part in model.network.modules() if isinstance(part, nn.Linear)]
    laid_out = operators == "oneDNN's"
    twice = sum(part.weight.nbytes for part in linears if laid_out and not part.weight.is_meta)
    assert held_bytes(model) <= before + twice + 4 * model.backbone.width
    decoding = {part for layer in model.backbone.layers for part in layer.modules()}
    embeddings = {id(part.weight) for part in model.network.modules() if isinstance(part, nn.Embedding)}
    for part in linears:
        kept = id(part.weight) in embeddings or (part in decoding and dtype == torch.bfloat16)
        assert part.weight.is_meta != kept
    assert sum(own.numel() for own in model.parameters()) == parameters, "shapes stay"


def test_a_frozen_model_is_not_saved(build: Any, tmp_path: Path) -> None:
    model, folder = build().freeze(), tmp_path / "model"
    for save in (model.state_dict, model.network.state_dict, lambda: model.save_pretrained(folder)):
        with pytest.raises(UserError, match="frozen model can be neither saved nor loaded into"):
            save()
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="a frozen model ranks and fuses alone"):
        model(torch.ones(2, dtype=torch.int64), Layout.of([[2]]), None)
    assert model.freeze() is model


class Made(TorchDispatchMode):
    """Notes the bytes of each storage that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in storages_of((args, kwargs))}
        self.sizes += [own.nbytes() for own in storages_of(result) if own.data_ptr() not in given]
        return result


def storages_of(tree: Any) -> list[torch.UntypedStorage]:
    found = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return [leaf.untyped_storage() for leaf in found if not (leaf.is_mkldnn or leaf.is_meta)]


@pytest.mark.parametrize("packs", [True, False], ids=["packed, as on a CPU", "padded, as on a GPU"])
@pytest.mark.parametrize("family", ["t5", "flan"])
def test_only_the_states_grow_with_the_candidates(
    family: str, packs: bool, build: Any, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding, ranking and selecting, of one query: its states are made once, and what else is made of all tokens is a
    number of 8 bytes a token at most, the rest no larger than for fewer candidates."""
    model = build(family)
    monkeypatch.setattr(model.backbone, "packs", lambda device: packs)
    monkeypatch.setattr(one_token, "ATTENDED_AT_ONCE", 64)
    model.chunk_tokens = 64
    model.freeze()
    largest = {}
    for n in (50, 400):
        tokens_S, layout = pack([[torch.randint(3, 40, (8,)) for _ in range(n)]])
        with torch.inference_mode(), Made() as made:
            hidden_SD = model.encode(tokens_S, layout)
            model.choose(model.rank(hidden_SD, layout), layout)
        assert made.sizes.count(hidden_SD.nbytes) == 1
        largest[n] = max(size for size in made.sizes if size != hidden_SD.nbytes)
    assert hidden_SD.nbytes == 8 * 400 * model.backbone.width * 4
    assert largest[400] <= max(largest[50], 8 * 8 * 400)
