"""A trained system's folder: what is refused, and compositions of two of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.sample import BASE_MODEL
from tests.urg.systems.tiny import ROWS, bert_tokenizer, config, roughen, save_fuser
from urg.systems import Setup, build_systems
from urg.systems.backbone import encoder_of, load_encoder
from urg.systems.encoder import EncoderRanker, RankerSettings
from urg.systems.gen_fuser import GenFuser
from urg.systems.pair_ranker import PairRanker
from urg.systems.simcls import SimCLS
from urg.systems.summareranker import SummaReranker
from urg.systems.trained import load_ranker


def saved(folder: Path, cls: type[EncoderRanker]) -> str:
    tokenizer = bert_tokenizer()
    settings = RankerSettings(source_tokens=12, candidate_tokens=9, tasks=("quality",))
    model = cls(encoder_of(config("bert", len(tokenizer))), tokenizer, settings)
    roughen(model)
    model.save_pretrained(folder, {name: p.detach() for name, p in model.named_parameters()})
    return str(folder)


def build(**folders: str) -> object:
    return build_systems(Setup("quality", (), folders=folders, device="cpu"))


def test_compositions_share_rankers_and_fuser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rankers = {cls.system: saved(tmp_path / cls.system, cls) for cls in (PairRanker, SimCLS, SummaReranker)}
    folders = {**rankers, "gen_fuser": str(save_fuser(tmp_path / "fuser"))}
    passes: list[int] = []
    matrices = PairRanker.matrices
    monkeypatch.setattr(PairRanker, "matrices", lambda model, rows: passes.append(len(rows)) or matrices(model, rows))
    setup = Setup("quality", (), folders=folders, device="cpu", num_beams=1, max_new_tokens=3)
    systems, unavailable = build_systems(setup)
    assert unavailable.keys() == {
        "mlm_scoring",
        "reward_model",
        "urg_rank",
        "urg_random_k",
        "urg",
        "imported",
        "judge_rank",
        "judge_fuse",
    }
    answers = {system.name: system.answer(ROWS) for system in systems}
    assert passes == [len(ROWS)]  # for pair_ranker, pair_ranker_wins and llm_blender together
    for fused, ranked in (
        ("llm_blender", "pair_ranker"),
        ("simcls_gen", "simcls"),
        ("summareranker_gen", "summareranker"),
    ):
        for one, other in zip(answers[fused], answers[ranked], strict=True):
            assert one is not None
            assert other is not None
            assert one.picked is None
            assert one.used[0] == other.picked
            assert len(one.used) <= 2


def test_half_precision_changes_scores_little(tmp_path: Path) -> None:
    folders = {cls.system: saved(tmp_path / cls.system, cls) for cls in (PairRanker, SimCLS, SummaReranker)}
    found = []
    for dtype in ("fp32", "bf16"):
        systems, _ = build_systems(Setup("quality", (), folders=folders, device="cpu", dtype=dtype))
        found.append({system.name: system.answer(ROWS[:1]) for system in systems if system.name in folders})
    for name in folders:
        full, half = (one[name][0] for one in found)
        assert full is not None
        assert half is not None
        assert half.scores == pytest.approx(full.scores, abs=0.1 * float(np.abs(full.scores).max()))


def test_a_folder_of_another_system_is_named_for_what_it_is(tmp_path: Path) -> None:
    simcls = saved(tmp_path / "simcls", SimCLS)
    with pytest.raises(UserError, match="holds simcls, not summareranker: name the model folder of"):
        build(summareranker=simcls)
    with pytest.raises(UserError, match="holds simcls, not pair_ranker"):
        build(pair_ranker=simcls)
    with pytest.raises(UserError, match="holds simcls, not gen_fuser"):
        build(pair_ranker=saved(tmp_path / "pair", PairRanker), gen_fuser=simcls)
    with pytest.raises(UserError, match="holds a URG model, not simcls"):
        build(simcls=str(BASE_MODEL))
    with pytest.raises(UserError, match="there is no folder"):
        build(simcls=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no trained system \(it has no system.json\), not pair_ranker"):
        build(pair_ranker=str(tmp_path / "empty"))


@pytest.mark.parametrize("system", ["simcls", "gen_fuser"])
def test_a_flipped_bit_in_the_weights_is_found_and_others_can_read_them(tmp_path: Path, system: str) -> None:
    folder = tmp_path / system
    saved(folder, SimCLS) if system == "simcls" else save_fuser(folder)
    weights = folder / "model.safetensors"
    assert weights.stat().st_mode == (folder / "system.json").stat().st_mode
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or was altered"):
        load_ranker(SimCLS, folder) if system == "simcls" else GenFuser.from_pretrained(folder)


@pytest.mark.parametrize(
    "fault", ["weights cut", "weight gone", "no config", "another config", "no tokenizer", "settings", "system.json"]
)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, fault: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(saved(tmp_path / "simcls", SimCLS))
    weights = folder / "model.safetensors"
    if fault == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "weight gone":
        kept = load_file(weights)
        kept.pop("pretrained_model.embeddings.LayerNorm.bias")
        save_file(kept, weights)
    elif fault == "no config":
        (folder / "config.json").unlink()
    elif fault == "another config":
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stored | {"intermediate_size": 20}))
    elif fault == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif fault == "settings":
        (folder / "system.json").write_text(json.dumps({"system": "simcls", "settings": {"colour": "red"}}))
    else:
        (folder / "system.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged|lacks weights|cannot be loaded|do not fit|unreadable|no tokenizer"):
        build(simcls=str(folder))


def test_an_encoder_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as an encoder"):
        load_encoder(str(tmp_path))
    encoder = encoder_of(config("bert", 40))
    encoder.save_pretrained(tmp_path / "encoder")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "encoder" / "model.safetensors"
    kept = load_file(file)
    kept.pop("embeddings.LayerNorm.bias")
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is not an encoder: it lacks weights, embeddings\.LayerNorm\.bias"):
        load_encoder(str(tmp_path / "encoder"))
