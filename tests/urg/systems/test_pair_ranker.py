"""PairRanker: agreement with a slow derivation, with PairRM's published rules, and what training draws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, DebertaV2Model

from data_pipeline.errors import UserError
from tests.urg.systems.tiny import CANDIDATE, NAN, ROWS, SOURCE, bert_tokenizer, config, make_ranker, roughen, row
from urg.systems.backbone import encoder_of
from urg.systems.comparison import max_logits, max_wins
from urg.systems.encoder import RankerSettings
from urg.systems.pair_ranker import PairRanker, draw_pairs, load_pair_ranker
from urg.systems.trained import load_ranker


def slow_ids(
    tokenizer: Any, source: str, first: str, second: str, limits: tuple[int, int], fills_up: bool
) -> list[int]:
    """The input as the model card of PairRM-hf builds it, from three texts, a pair at a time.

    fills_up: as there, what a short source leaves is the candidates'.
    """
    first, second = (text.replace("[SEP]", " ").replace("<|candidate1|>", " ") for text in (first, second))
    ids = list(tokenizer.encode("<|source|>" + source, max_length=limits[0], truncation=True))
    room = (limits[0] + 2 * limits[1] - len(ids)) // 2 if fills_up else limits[1]
    ids += tokenizer.encode("<|candidate1|>" + first, max_length=room, truncation=True)
    return ids + tokenizer.encode("<|candidate2|>" + second, max_length=room, truncation=True)


def slow_logit(encoder: Any, head: dict[str, torch.Tensor], tokenizer: Any, ids: list[int]) -> float:
    """Left minus right, one pair alone: Linear, tanh, Linear on [source; candidate], the tasks averaged."""
    states = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
    source, left, right = (
        states[ids.index(tokenizer.convert_tokens_to_ids(token))]
        for token in ("<|source|>", "<|candidate1|>", "<|candidate2|>")
    )
    both = []
    for side in (left, right):
        hidden = torch.tanh(head["1.weight"] @ torch.cat([source, side]) + head["1.bias"])
        both.append((head["4.weight"] @ hidden + head["4.bias"]).mean())
    return float(both[0] - both[1])


def slow_matrix(
    encoder: Any, head: dict[str, torch.Tensor], tokenizer: Any, limits: tuple[int, int], made: Any, fills_up: bool
) -> Any:
    source = f"{made.instruction}\n{made.input}"
    matrix = np.zeros((len(made.texts), len(made.texts)))
    for i, left in enumerate(made.texts):
        for j, right in enumerate(made.texts):
            if i != j:
                ids = slow_ids(tokenizer, source, left, right, limits, fills_up)
                matrix[i, j] = slow_logit(encoder, head, tokenizer, ids)
    return matrix


def slow_bubble(matrix: np.ndarray) -> int:
    """The winner: the champion meets each challenger in turn, once on each side."""
    champion = 0
    for challenger in range(1, len(matrix)):
        if matrix[champion, challenger] - matrix[challenger, champion] <= 0:
            champion = challenger
    return champion


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "t5"])
@pytest.mark.parametrize(("chunk", "fills_up"), [(40, False), (10_000, False), (10_000, True)])
def test_full_bubble_and_aggregations_agree_with_a_slow_derivation(family: str, chunk: int, fills_up: bool) -> None:
    model = make_ranker(PairRanker, family, tasks=("quality", "other"), fills_up=fills_up)
    model.chunk_tokens = chunk
    tokenizer, head = model.texts.tokenizer, model.head_layer.state_dict()
    with torch.inference_mode():
        matrices, places = model.matrices(ROWS), model.bubble(ROWS)
        for made, matrix, place in zip(ROWS, matrices, places, strict=True):
            slow = slow_matrix(model.pretrained_model, head, tokenizer, (SOURCE, CANDIDATE), made, fills_up)
            np.testing.assert_allclose(matrix, slow, atol=2e-5)
            n = len(made.texts)
            mean = [sum(slow[i, j] - slow[j, i] for j in range(n)) / n for i in range(n)]
            np.testing.assert_allclose(max_logits(matrix), mean, atol=2e-5)
            wins = [sum(int(slow[i, j] > 0) + int(slow[j, i] < 0) for j in range(n) if j != i) for i in range(n)]
            assert max_wins(slow).tolist() == wins
            assert int(np.argmax(place)) == slow_bubble(matrix)
            assert sorted(place) == list(range(n))


def test_candidates_share_what_a_short_source_leaves_where_that_is_asked_in_training_as_in_use(tmp_path: Path) -> None:
    """With a source at its limit they have no more than their own; a folder that is older than the setting has none."""
    texts, quality = ["one " * 40, "two " * 40], [0.1, 0.9]
    short, long = (row("1", texts, instruction=x, quality=quality) for x in ("what", "what " * 40))
    lengths = {}
    for fills_up in (False, True):
        model = make_ranker(PairRanker, fills_up=fills_up)
        for name, made in (("short", short), ("long", long)):
            batch = model.training_batch([made], [np.random.default_rng(0)], fillers=0)
            lengths[fills_up, name] = batch.sequences.lengths
    whole = SOURCE + 2 * CANDIDATE
    source = len(bert_tokenizer().encode("what to this")) + 1  # its prefix
    assert lengths[False, "long"] == lengths[True, "long"] == (whole,)
    assert lengths[False, "short"] == (source + 2 * CANDIDATE,)
    assert lengths[True, "short"] == (source + 2 * ((whole - source) // 2),)
    model.save_pretrained(tmp_path)
    assert load_pair_ranker(tmp_path).settings.fills_up
    stored = json.loads((tmp_path / "system.json").read_text())
    del stored["settings"]["fills_up"]
    for file in ("system.json", "SHA256SUMS"):
        (tmp_path / file).unlink()
    (tmp_path / "system.json").write_text(json.dumps(stored))
    assert not load_pair_ranker(tmp_path).settings.fills_up


def test_bubble_takes_two_passes_a_candidate_and_full_all_ordered_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_ranker(PairRanker), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda sequences: seen.append(len(sequences.lengths)) or forward(sequences))
    with torch.inference_mode():
        model.matrices(ROWS)
        assert seen == [sum(n * (n - 1) for n in (4, 1, 3, 2))]
        seen.clear()
        model.bubble(ROWS)
        assert sum(seen) == sum(2 * (n - 1) for n in (4, 1, 3, 2))


def pairrm_folder(folder: Path, head: str = "head_layer", tasks: int = 1) -> Path:
    """A tiny random folder in the layout of llm-blender/PairRM-hf."""
    tokenizer = bert_tokenizer()
    prefixes = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
    tokenizer.add_tokens(prefixes)
    own = config("deberta-v2", len(tokenizer))
    ids = dict(zip(("source", "cand1", "cand2", "cand"), tokenizer.convert_tokens_to_ids(prefixes), strict=True))
    own.update({f"{name}_prefix_id": value for name, value in ids.items()})
    own.update({"n_tasks": tasks, "drop_out": 0.05, "architectures": ["DebertaV2PairRM"]})
    encoder = DebertaV2Model(own)
    roughen(encoder)
    generator = torch.Generator().manual_seed(2)
    shapes = {"1.weight": (16, 32), "1.bias": (16,), "4.weight": (tasks, 16), "4.bias": (tasks,)}
    weights = {f"pretrained_model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    weights |= {f"{head}.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["pretrained_model.embeddings.position_ids"] = torch.arange(4)[None]  # as older versions of the library save
    folder.mkdir(parents=True)
    own.save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text()) | {"architectures": ["DebertaV2PairRM"]}
    (folder / "config.json").write_text(json.dumps(stored))
    tokenizer.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("head", "tasks"), [("head_layer", 1), ("final_layer", 3)], ids=["published", "older"])
def test_a_folder_in_pairrms_layout_gives_the_scores_of_its_published_code(
    tmp_path: Path, head: str, tasks: int
) -> None:
    folder = pairrm_folder(tmp_path / "PairRM-hf", head, tasks)
    model = load_pair_ranker(folder)
    weights = load_file(folder / "model.safetensors")
    encoder = DebertaV2Model(AutoConfig.from_pretrained(folder)).eval()
    own = {k.removeprefix("pretrained_model."): v for k, v in weights.items() if k.startswith("pretrained_model.")}
    encoder.load_state_dict({name: tensor for name, tensor in own.items() if "position_ids" not in name})
    layers = {k.removeprefix(f"{head}."): v for k, v in weights.items() if k.startswith(head)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [ROWS[0]]
    if tasks == 1:  # both limits cut; a sequence of 1,640 tokens takes its time
        rows.append(row("long", ["two " * 500, "one"], instruction="what " * 2000))
    with torch.inference_mode():
        for made, matrix in zip(rows, model.matrices(rows), strict=True):
            slow = slow_matrix(encoder, layers, tokenizer, (1224, 412), made, fills_up=True)
            np.testing.assert_allclose(matrix, slow, atol=5e-5)
            assert np.abs(slow).max() > 0.001


def test_a_pairrm_folder_whose_tokenizer_is_another_is_refused(tmp_path: Path) -> None:
    folder = pairrm_folder(tmp_path / "PairRM-hf")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"cand1_prefix_id": 7}))
    with pytest.raises(UserError, match="cand1_prefix_id 7"):
        load_pair_ranker(folder)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "t5"])
def test_what_is_saved_loads_back_with_equal_scores(family: str, tmp_path: Path) -> None:
    model = make_ranker(PairRanker, family, inference="bubble", aggregation="max_wins")
    model.save_pretrained(tmp_path, {name: p.detach() for name, p in model.named_parameters()})
    again = load_pair_ranker(tmp_path)
    assert again.settings == model.settings
    with torch.inference_mode():
        for one, other in zip(model.matrices(ROWS), again.matrices(ROWS), strict=True):
            np.testing.assert_array_equal(one, other)
        assert [s.tolist() for s in model.scores(ROWS)] == [s.tolist() for s in again.bubble(ROWS)]
    assert load_ranker(PairRanker, tmp_path).settings.aggregation == "max_wins"


def test_pairs_are_different_useful_of_distinct_texts_and_on_random_sides() -> None:
    texts = ["a", "b", "a", "c", "d"]
    quality = np.array([[0.1], [0.2], [0.9], [0.2], [NAN]])
    seen: Counter[tuple[int, int]] = Counter()
    for seed in range(200):
        drawn = draw_pairs(texts, quality, 5, np.random.default_rng(seed))
        assert (
            len(drawn) == len({frozenset(pair) for pair in drawn}) == 2
        )  # (b, c) are equal, d unknown, the second a too
        seen.update(drawn)
    assert set(seen) == {(0, 1), (1, 0), (0, 3), (3, 0)}
    assert min(seen.values()) > 60
    many = draw_pairs([str(i) for i in range(12)], np.arange(12.0)[:, None], 5, np.random.default_rng(0))
    assert len({frozenset(pair) for pair in many}) == 5


def test_the_loss_is_minus_log_sigmoid_of_the_signed_difference_a_row() -> None:
    model = make_ranker(PairRanker, tasks=("quality", "other"))
    rows = [
        row("1", ["red", "blue", "green"], quality=[0.3, 0.1, NAN], other=[1.0, 2.0, 2.0]),
        row("2", ["one", "two"], quality=[0.5, 0.6], other=[0.0, 0.0]),
        row("filler", ["one", "two"], quality=[0.5, 0.6], other=[0.0, 0.0]),
    ]
    draws = [np.random.default_rng(b) for b in range(3)]
    batch = model.training_batch(rows, draws, fillers=1)
    logits = model(batch.sequences).detach()
    expected, place = 0.0, 0
    for b, made in enumerate(rows[:2]):
        quality = np.stack([made.scores["quality"], made.scores["other"]], axis=1)
        values = []
        for i, j in draw_pairs(made.texts, quality, 5, np.random.default_rng(b)):
            for task in range(2):
                difference = quality[i, task] - quality[j, task]
                if abs(difference) > 0:
                    signed = np.sign(difference) * float(logits[place, task])
                    values.append(-np.log(1 / (1 + np.exp(-signed))))
            place += 1
        expected += float(np.mean(values))
    assert float(model.terms(logits, batch)["pairs"]) == pytest.approx(expected, rel=1e-5)


def test_rows_without_a_useful_pair_train_nothing_and_break_nothing() -> None:
    model = make_ranker(PairRanker)
    batch = model.training_batch([ROWS[1], ROWS[2]], [np.random.default_rng(0)] * 2, fillers=0)
    loss = model.terms(model(batch.sequences), batch)["pairs"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_an_encoder_with_too_few_positions_is_one_sentence() -> None:
    tokenizer = bert_tokenizer()
    with pytest.raises(UserError, match=r"384 tokens and its encoder takes 128: lower ranker\.source_tokens"):
        PairRanker(encoder_of(config("bert", len(tokenizer))), tokenizer, RankerSettings(tasks=("q",)))
