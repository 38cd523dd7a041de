"""The one-step ranking: equations 5 and 6, their gradients, and what must not change a score."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from urg.backbones import t5
from urg.layout import Layout
from urg.losses import rank_loss
from urg.model import URG, Settings

FAMILIES = ["t5", "flan", "mt5", "byt5"]
Pack = Callable[[list[list[Tensor]]], tuple[Tensor, Layout]]


def scores_of(model: URG, packed: tuple[Tensor, Layout]) -> Tensor:
    tokens_S, layout = packed
    return model.rank(model.encode(tokens_S, layout), layout)


def close_gradients(ours: torch.nn.Module, theirs: torch.nn.Module, tolerance: float) -> None:
    """Every parameter's gradient, within a share of the largest gradient of that parameter; None counts as 0."""
    reference = dict(theirs.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in reference.values() if p.grad is not None)
    assert largest > 0
    for name, parameter in ours.named_parameters():
        a, b = (torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, reference[name]))
        bound = tolerance * max(float(b.abs().max()), 1e-3 * largest)
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=bound, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_equations_5_and_6(
    family: str, build: Any, pack: Pack, queries: list[list[Tensor]], eager: Any
) -> None:
    model = build(family)
    slow = eager(model)
    expected = pad_sequence([torch.stack(slow.scores(slow.states(query))) for query in queries], batch_first=True)
    scores = scores_of(model, pack(queries))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)
    spread = (scores.max(1).values / scores.masked_fill(scores == 0, 1).min(1).values)[[0, 2, 3, 4]]
    assert (spread > 1.02).all(), "the tiny model must not make every score equal, or this proves little"


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_derivation(
    family: str, build: Any, pack: Pack, queries: list[list[Tensor]], eager: Any
) -> None:
    """From the scores, through ranking and encoder, to every weight."""
    model, tokens = build(family), pack(queries)
    slow = eager(model)
    weights = torch.randn(tokens[1].tokens_BN.shape) * tokens[1].tokens_BN
    (scores_of(model, tokens) * weights).sum().backward()
    loss = torch.zeros((), dtype=torch.float64)
    for b, query in enumerate(queries):
        for n, score in enumerate(slow.scores(slow.states(query))):
            loss = loss + weights[b, n].double() * score
    loss.backward()
    close_gradients(model.t5, slow.t5, 1e-3)


def test_gradients_of_encoder_states_are_those_of_the_derivation(
    build: Any, pack: Pack, queries: list[list[Tensor]], eager: Any
) -> None:
    """The ranking step alone: no encoder in between."""
    model = build()
    slow = eager(model)
    tokens_S, layout = pack(queries)
    hidden_SD = model.encode(tokens_S, layout).detach().requires_grad_()
    weights = torch.randn(layout.tokens_BN.shape) * layout.tokens_BN
    (model.rank(hidden_SD, layout) * weights).sum().backward()
    reference = hidden_SD.detach().double().requires_grad_()
    states = iter(reference.split(layout.candidate_lengths))
    sums = [
        weights[b, n].double() * score
        for b, query in enumerate(queries)
        for n, score in enumerate(slow.scores([next(states) for _ in query]))
    ]
    torch.stack(sums).sum().backward()
    torch.testing.assert_close(hidden_SD.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layers", "tokens"), [("last", "all"), ("all", "response"), ("last", "response")])
def test_the_last_layer_and_the_response_may_count_alone(
    layers: str, tokens: str, family: str, build: Any, queries: list[list[Tensor]], eager: Any
) -> None:
    """Against the whole attention of the first decoder step; company in the batch does not matter."""
    questions = [2, 1, 2, 0, 1]
    model = build(family)
    slow = eager(model)
    model.settings = replace(model.settings, score_layers=layers, score_tokens=tokens)
    expected = []
    for query, question in zip(queries, questions, strict=True):
        states = torch.cat(slow.states(query)).unsqueeze(0)
        start = torch.tensor([[slow.t5.config.decoder_start_token_id]])
        output = slow.t5.decoder(input_ids=start, encoder_hidden_states=states, output_attentions=True)
        layers_ML = torch.stack([layer_1H1L[0, :, 0].mean(0) for layer_1H1L in output.cross_attentions])
        mean_L = layers_ML[-1] if layers == "last" else layers_ML.mean(0)
        parts = mean_L.split([len(ids) for ids in query])
        expected.append(torch.stack([part[question if tokens == "response" else 0 :].mean() for part in parts]))
    lengths = [[len(ids) for ids in query] for query in queries]
    packed = torch.cat([ids for query in queries for ids in query]), Layout.of(lengths, questions)
    scores = scores_of(model, packed)
    torch.testing.assert_close(scores.double(), pad_sequence(expected, batch_first=True), rtol=1e-5, atol=1e-6)


def test_attention_sums_to_one_and_padding_gets_zero(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    tokens_S, layout = pack(queries)
    scores = scores_of(build(), (tokens_S, layout))
    torch.testing.assert_close((scores * layout.tokens_BN).sum(1), torch.ones(len(queries)))
    assert (scores[~layout.mask_BN] == 0).all()
    assert (scores[layout.mask_BN] > 0).all()
    assert scores[1, 0].item() == pytest.approx(1 / len(queries[1][0])), "a lone candidate gets all attention"


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_permute_with_the_candidates(family: str, build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    model = build(family)
    scores = scores_of(model, pack(queries))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(query), generator=generator).tolist() for query in queries]
        moved = scores_of(model, pack([[q[i] for i in order] for q, order in zip(queries, orders, strict=True)]))
        for b, order in enumerate(orders):
            torch.testing.assert_close(moved[b, : len(order)], scores[b, order], rtol=1e-5, atol=1e-7)


def test_company_in_the_batch_does_not_matter(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    model = build()
    together = scores_of(model, pack(queries))
    for b, query in enumerate(queries):
        torch.testing.assert_close(together[b, : len(query)], scores_of(model, pack([query]))[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("budget", [1, 7, 20])
def test_the_chunk_budget_does_not_matter(budget: int, build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    model = build()
    tokens_S, layout = pack(queries)
    whole = model.encode(tokens_S, layout)
    model.chunk_tokens = budget
    torch.testing.assert_close(model.encode(tokens_S, layout), whole, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------------
# bf16 weights: everything of the ranking step is still computed in fp32


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_weights_are_used_in_fp32(family: str, build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    """With the same encoder states, bf16 weights and their fp32 copies give one score: nothing is rounded."""
    model = build(family).bfloat16()
    tokens_S, layout = pack(queries)
    hidden_SD = model.encode(tokens_S, layout)
    scores = model.rank(hidden_SD, layout)
    assert scores.dtype == torch.float32
    torch.testing.assert_close((scores * layout.tokens_BN).sum(1), torch.ones(len(queries)))
    torch.testing.assert_close(scores, model.float().rank(hidden_SD.float(), layout), rtol=1e-5, atol=1e-6)


def test_bf16_scores_are_close_to_fp32_ones(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    model = build()
    expected = scores_of(model, pack(queries))
    error = (scores_of(model.bfloat16(), pack(queries)) - expected).abs()
    assert (error.max(1).values < 0.05 * expected.max(1).values).all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_of_bf16_layers_changes_no_gradient(
    dropout: float, build: Any, pack: Pack, queries: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = build().bfloat16().train(), pack(queries)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    weights = torch.randn(tokens[1].tokens_BN.shape) * tokens[1].tokens_BN
    kept = copy.deepcopy(model)
    torch.manual_seed(3)
    (scores_of(model, tokens) * weights).sum().backward()
    calls = []

    def plain(layer: Callable[..., Any], *arguments: Any, use_reentrant: bool) -> Any:
        calls.append(layer)
        return layer(*arguments)

    monkeypatch.setattr("urg.ranking.checkpoint", plain)
    torch.manual_seed(3)
    (scores_of(kept, tokens) * weights).sum().backward()
    assert len(calls) == 2, "one a layer"
    close_gradients(model.t5, kept.t5, 1e-6)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partitioned_weights_give_the_same_scores(
    dtype: torch.dtype, build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    """ZeRO-3 marks its parameters with ds_id; then modules are called whole, and keys and values are projected."""
    model, (tokens_S, layout) = build().to(dtype), pack(queries)
    hidden_SD = model.encode(tokens_S, layout)  # once: in bf16 the encoder rounds otherwise where it is partitioned
    expected = model.rank(hidden_SD, layout)
    for parameter in model.parameters():
        parameter.ds_id = 0
    rtol = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(model.rank(hidden_SD, layout), expected, rtol=rtol, atol=1e-7)


# --------------------------------------------------------------------------------------------------------------------
# The hinge has no gradient where all scores are equal: a fresh model with real texts is not there, and learns order

ANSWERS = (
    "Paris is the capital of France.",
    "I think that the capital of France may be Lyon, but I am not sure about that.",
    "France",
    "As a language model, I cannot answer that question.",
)


def texts(answers: tuple[str, ...]) -> list[Tensor]:
    question = b"What is the capital of France?"
    return [torch.tensor([257, *(b + 1 for b in question), 256, *(b + 1 for b in a.encode()), 256]) for a in answers]


@pytest.mark.parametrize("tied", [True, False])
def test_a_fresh_model_tells_real_texts_apart_and_learns_their_order(tied: bool, pack: Pack) -> None:
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = URG.from_scratch(258, Settings(), tie_word_embeddings=tied, **shape).eval()
    tokens_S, layout = pack([texts(ANSWERS)])
    start = scores_of(model, (tokens_S, layout)).detach()
    assert len(set(start[0].tolist())) == len(ANSWERS)
    assert start.std() / start.mean() > 1e-3, "apart by far more than fp32 rounds"
    quality = -start  # the reverse of what the fresh model thinks
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        loss = rank_loss(scores_of(model, (tokens_S, layout)), layout.tokens_BN, quality).sum()
        loss.backward()
        if step == 0:
            touched = ("encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.1.EncDecAttention.k", "shared")
            for name in touched:
                assert model.t5.get_submodule(name).weight.grad.abs().max() > 0, name
        optimizer.step()
    order = scores_of(model, (tokens_S, layout))[0].argsort(descending=True)
    assert torch.equal(order, quality[0].argsort(descending=True))


@pytest.mark.parametrize("budget", [1, 24, 10_000])
@pytest.mark.parametrize(("layers", "tokens"), [("all", "all"), ("last", "response")])
def test_a_frozen_model_ranks_by_groups_of_a_bounded_size(
    budget: int, layers: str, tokens: str, build: Any, queries: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many queries a batch has, and however unequal: the same scores."""
    model, lengths = build(), [[len(ids) for ids in query] for query in queries * 3]
    model.settings = replace(model.settings, score_layers=layers, score_tokens=tokens)
    tokens_S, layout = (
        torch.cat([ids for query in queries * 3 for ids in query]),
        Layout.of(lengths, [2, 1, 2, 0, 1] * 3),
    )
    with torch.inference_mode():
        hidden_SD = model.encode(tokens_S, layout)
        expected = model.rank(hidden_SD, layout)
        sizes: list[torch.Size] = []
        cross_attention = t5.cross_attention

        def measured(q_BHE: Tensor, key: Any, value: Any, states_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(states_BLD.shape[:2])
            return cross_attention(q_BHE, key, value, states_BLD, mask_BL)

        monkeypatch.setattr(t5, "cross_attention", measured)
        model.freeze().chunk_tokens = budget
        scores = model.rank(hidden_SD, layout)
    assert sum(size.numel() > budget and size[0] > 1 for size in sizes) == 0
    assert sum(size[0] for size in sizes) == len(lengths) * len(model.backbone.layers)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


def test_equal_texts_get_equal_scores(build: Any, pack: Pack, queries: list[list[Tensor]]) -> None:
    scores = scores_of(build(), pack([[queries[0][0]] * 4]))
    torch.testing.assert_close(scores, torch.full((1, 4), 1 / (4 * len(queries[0][0]))))


# --------------------------------------------------------------------------------------------------------------------
# Dropout: where the library's own decoder step draws it


def dropouts(stack: torch.nn.Module, run: Callable[[], Any]) -> Counter[str]:
    """How often `run` calls each dropout layer below `stack`."""
    called: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.update([name]))
        for name, module in stack.named_modules()
        if isinstance(module, torch.nn.Dropout)
    ]
    run()
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_where_the_librarys_decoder_has_it(
    family: str, build: Any, pack: Pack, queries: list[list[Tensor]]
) -> None:
    model = build(family)
    decoder, start = model.t5.decoder, torch.zeros(1, 1, dtype=torch.int64)
    tokens_S, layout = pack(queries[:1])
    hidden_SD = model.encode(tokens_S, layout)
    expected = dropouts(decoder, lambda: decoder(input_ids=start, encoder_hidden_states=hidden_SD.unsqueeze(0)))
    expected["dropout"] -= 1  # after the last norm, which no score needs
    assert dropouts(decoder, lambda: model.rank(hidden_SD, layout)) == expected
    assert len(expected) == 1 + 4 * len(decoder.block)
