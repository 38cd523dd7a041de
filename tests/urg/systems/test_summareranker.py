"""SummaReranker: scores, head and loss against a slow derivation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.urg.systems.tiny import NAN, ROWS, make_ranker, row
from urg.systems.summareranker import MixtureHead, SummaReranker
from urg.systems.trained import load_ranker


def slow_logits(head: MixtureHead, state: torch.Tensor) -> list[float]:
    """A task after the other: the best half of the experts, weighted by the softmax over them."""
    bottom = head.bottom(state[None])[0]
    logits = []
    for task, tower in enumerate(head.towers):
        gates = head.gates[task](bottom[None])[0]
        best = gates.argsort(descending=True)[: len(head.experts) // 2].tolist()
        total = sum(float(torch.exp(gates[e])) for e in best)
        mixed = sum(float(torch.exp(gates[e])) / total * head.experts[e](bottom[None])[0] for e in best)
        logits.append(float(tower(mixed[None])))
    return logits


@pytest.mark.parametrize(("family", "tasks"), [("bert", ("quality",)), ("t5", ("quality", "a", "b"))])
def test_scores_are_those_of_one_text_alone_and_survive_saving(
    family: str, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    model = make_ranker(SummaReranker, family, tasks=tasks)
    model.chunk_tokens = 40
    model.save_pretrained(tmp_path, {name: p.detach() for name, p in model.named_parameters()})
    again = load_ranker(SummaReranker, tmp_path)
    again.chunk_tokens = 40
    tokenizer = model.texts.tokenizer
    with torch.inference_mode():
        for made, scores, loaded in zip(ROWS, model.scores(ROWS), again.scores(ROWS), strict=True):
            np.testing.assert_array_equal(scores, loaded)
            source = tokenizer.encode(f"<|source|>{made.instruction}\n{made.input}", max_length=12, truncation=True)
            for text, score in zip(made.texts, scores, strict=True):
                plain = text.replace("[SEP]", " ").replace("<|candidate1|>", " ")
                ids = source + tokenizer.encode("<|candidate|>" + plain, max_length=9, truncation=True)[1:]
                state = model.pretrained_model(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
                assert score == pytest.approx(np.mean(slow_logits(model.head, state)), abs=2e-4)


def test_the_loss_is_binary_cross_entropy_with_the_best_as_the_positive() -> None:
    model = make_ranker(SummaReranker, tasks=("quality", "other"))
    rows = [
        row("1", ["red", "blue", "green"], quality=[0.2, 0.9, 0.9], other=[NAN, 1.0, 2.0]),
        row("2", ["one", "two"], quality=[NAN, NAN], other=[0.5, 0.1]),
        row("filler", ["one", "two"], quality=[0.1, 0.2], other=[0.5, 0.1]),
    ]
    batch = model.training_batch(rows, [], fillers=1)
    output = tuple(part.detach() for part in model(batch.sequences))
    logits, gates = output
    wanted = [
        [(0, 0, 0), (1, 0, 1), (2, 0, 1)],
        [(1, 1, 0), (2, 1, 1)],
        [(3, 1, 1), (4, 1, 0)],
    ]  # candidate, task, best

    def cross_entropy(logit: float, best: int) -> float:
        p = 1 / (1 + np.exp(-logit))
        return float(-np.log(p if best else 1 - p))

    means = [np.mean([cross_entropy(float(logits[c, t]), best) for c, t, best in group]) / 2 for group in wanted]
    terms = model.terms(output, batch)
    assert float(terms["best"]) == pytest.approx(sum(means), rel=1e-5)
    balance = 0.0
    for members in ([0, 1, 2], [3, 4]):
        use = gates[members].sum(dim=0).double().numpy()
        balance += np.mean([own.var(ddof=1) / own.mean() ** 2 for own in use])
    assert float(terms["balance"]) == pytest.approx(balance, rel=1e-5)


def test_gates_are_noisy_in_training_only_and_each_has_a_gradient() -> None:
    torch.manual_seed(0)
    head, states = MixtureHead(8, 1, 0.0), torch.randn(64, 8)
    assert torch.equal(head.eval()(states)[1], head(states)[1])
    logits, gates = head.train()(states)
    assert not torch.equal(gates, head(states)[1])
    torch.testing.assert_close(gates.sum(dim=2), torch.ones(64, 1))
    assert (gates > 0).sum(dim=2).eq(2).all()
    logits.square().sum().backward()
    assert head.gates[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
