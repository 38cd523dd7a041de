"""SimCLS: scores and loss against a slow derivation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.urg.systems.tiny import NAN, ROWS, make_ranker, row
from urg.systems.simcls import SimCLS
from urg.systems.trained import load_ranker


def slow_vector(model: SimCLS, text: str, limit: int) -> torch.Tensor:
    """One text alone."""
    ids = model.texts.tokenizer.encode(text, max_length=limit, truncation=True)
    states = model.pretrained_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states[0] if model.settings.pooling == "first" else states.mean(dim=0)


@pytest.mark.parametrize(("family", "pooling"), [("bert", "first"), ("t5", "mean"), ("deberta-v2", "mean")])
def test_a_score_is_the_cosine_of_input_and_candidate_and_survives_saving(
    family: str, pooling: str, tmp_path: Path
) -> None:
    model = make_ranker(SimCLS, family, pooling=pooling)
    model.chunk_tokens = 40
    model.save_pretrained(tmp_path, {name: p.detach() for name, p in model.named_parameters()})
    again = load_ranker(SimCLS, tmp_path)
    again.chunk_tokens = 40
    with torch.inference_mode():
        for made, scores, loaded in zip(ROWS, model.scores(ROWS), again.scores(ROWS), strict=True):
            np.testing.assert_array_equal(scores, loaded)
            source = slow_vector(model, f"<|source|>{made.instruction}\n{made.input}", 12)
            for text, score in zip(made.texts, scores, strict=True):
                plain = text.replace("[SEP]", " ").replace("<|candidate1|>", " ")
                candidate = slow_vector(model, "<|candidate|>" + plain, 9)
                assert score == pytest.approx(float(torch.cosine_similarity(source, candidate, dim=0)), abs=2e-5)


def test_the_loss_sums_margins_over_pairs_and_averages_the_golds() -> None:
    model = make_ranker(SimCLS)
    rows = [
        row("1", ["red", "blue", "green", "one", "two"], output="five", quality=[0.2, 0.9, NAN, 0.2, 0.5]),
        row("2", ["one", "two"], quality=[0.1, 0.7]),  # no reference
        row("filler", ["red", "blue"], output="five", quality=[0.1, 0.7]),
    ]
    batch = model.training_batch(rows, [], fillers=1)
    terms = model.terms(model(batch.sequences).detach(), batch)
    with torch.inference_mode():
        scores = model.scores(rows[:2])
        gold = float(model.scores([row("1", ["five"])])[0][0])
    golds = np.mean([max(0.0, score - gold) for score in scores[0]])
    ranked = [(1, 4), (1, 0), (1, 3), (4, 0), (4, 3)]  # 0 and 3 are equal, 2 has no label: best first 1, 4, 0, 3
    place = {1: 0, 4: 1, 0: 2, 3: 3}
    pairs = sum(max(0.0, scores[0][j] - scores[0][i] + (place[j] - place[i]) / 4) for i, j in ranked)
    pairs += max(0.0, scores[1][0] - scores[1][1] + 1 / 2)
    assert float(terms["gold"]) == pytest.approx(golds, abs=1e-5)
    assert float(terms["pairs"]) == pytest.approx(pairs, abs=1e-5)


def test_a_batch_with_nothing_to_compare_has_no_loss() -> None:
    model = make_ranker(SimCLS)
    batch = model.training_batch([row("1", ["red"], quality=[0.3])], [], fillers=0)
    terms = model.terms(model(batch.sequences), batch)
    assert sum(terms.values()).item() == 0.0
    sum(terms.values()).backward()
