"""URG's passes: encode, select, gather, decode and fuse, against a derivation that sees one query at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.urg.made_up import logits
from urg.layout import Layout, gather
from urg.model import near_top, select

FAMILIES = ["t5", "flan", "mt5", "byt5"]
NAN, INF = float("nan"), float("inf")
Queries = list[list[Tensor]]
Pack = Callable[[Queries], tuple[Tensor, Layout]]


def best(guide: list[float], k: int) -> tuple[list[int], list[int]]:
    """The k best by a stable sort, and the last one where there are more than k: lists of indices, in given order."""
    order = sorted(range(len(guide)), key=lambda i: (-guide[i], i))
    return sorted(order[:k]), order[-1:] if len(guide) > k else []


def where(mask_N: Tensor) -> list[int]:
    return mask_N.nonzero().flatten().tolist()


# --------------------------------------------------------------------------------------------------------------------
# Selecting and gathering

GUIDE_OF_A_QUERY = st.lists(st.sampled_from([-INF, -1.5, 0.0, 0.25, 3.0]), min_size=1, max_size=6)
GUIDES = st.lists(GUIDE_OF_A_QUERY, min_size=1, max_size=4)


@given(guides=GUIDES, k=st.integers(1, 7))
@settings(max_examples=60)
def test_select_takes_the_k_best_and_the_last_and_breaks_ties_by_index(guides: list[list[float]], k: int) -> None:
    layout = Layout.of([[1] * len(row) for row in guides])
    for filler in (-INF, 0.0, 9.0):  # what stands at padding does not matter
        guide_BN = torch.full(layout.tokens_BN.shape, filler)
        for b, row in enumerate(guides):
            guide_BN[b, : len(row)] = torch.tensor(row)
        selected_BN, last_BN = select(guide_BN, layout.mask_BN, k)
        for b, row in enumerate(guides):
            assert (where(selected_BN[b]), where(last_BN[b])) == best(row, k)


def test_select_where_all_are_equal() -> None:
    selected_BN, last_BN = select(torch.full((1, 4), 0.5), torch.ones(1, 4, dtype=torch.bool), 2)
    assert (where(selected_BN[0]), where(last_BN[0])) == ([0, 1], [3])


SCORES = st.lists(st.sampled_from([0.0, 1e-9, 1e-4, 1.5e-4, 2e-4, 4e-4, 0.5]), min_size=1, max_size=6)


@given(rows=st.lists(SCORES, min_size=1, max_size=4), gap=st.sampled_from([0.0, 0.3, 0.7, 1.5, 20.0]))
@settings(max_examples=60)
def test_near_the_top_is_a_share_of_the_top_score(rows: list[list[float]], gap: float) -> None:
    layout = Layout.of([[1] * len(row) for row in rows])
    for filler in (0.0, 9.0):  # what stands at padding does not matter
        scores_BN = torch.full(layout.tokens_BN.shape, filler)
        for b, row in enumerate(rows):
            scores_BN[b, : len(row)] = torch.tensor(row)
        near_BN = near_top(scores_BN, layout.mask_BN, gap)
        for b, row in enumerate(rows):
            share = max(row) * math.exp(-gap)
            assert near_BN[b, : len(row)].tolist() == [s == max(row) or s >= share for s in row]


def test_a_model_that_has_diverged_selects_as_it_would_without_a_gap() -> None:
    scores_BN = torch.tensor([[NAN, 0.5, NAN], [0.5, 0.1, 0.4]])
    assert near_top(scores_BN, torch.ones(2, 3, dtype=torch.bool), 0.0).tolist() == [[True] * 3, [True, False, False]]


@given(data=st.data())
@settings(max_examples=40)
def test_gather_brings_the_wanted_tokens_and_no_others(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=5), min_size=1, max_size=3))
    k = data.draw(st.integers(1, 5))
    layout = Layout.of(lengths)
    hidden_SD = torch.arange(sum(layout.candidate_lengths)).unsqueeze(1).float()
    wanted_BN, inner_BN = (torch.zeros(layout.tokens_BN.shape, dtype=torch.bool) for _ in range(2))
    for b, row in enumerate(lengths):
        chosen = data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1, max_size=k, unique=True))
        wanted_BN[b, chosen] = True
        inner_BN[b, chosen[:1]] = True
    states_BLD, mask_BL, inner_BL = gather(hidden_SD, layout, wanted_BN, inner_BN, layout.longest(k))
    pieces = iter(hidden_SD.split(layout.candidate_lengths))
    for b, row in enumerate(lengths):
        candidates = [next(pieces) for _ in row]
        assert torch.equal(states_BLD[b][mask_BL[b]], torch.cat([candidates[i] for i in where(wanted_BN[b])]))
        assert torch.equal(states_BLD[b][inner_BL[b]], torch.cat([candidates[i] for i in where(inner_BN[b])]))


# --------------------------------------------------------------------------------------------------------------------
# Encoding (eq. 1) and teacher-forced decoding given E_tk and E_tk-l


@pytest.mark.parametrize("budget", [1, 12, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_encode_is_equation_1(family: str, budget: int, build: Any, pack: Pack, queries: Queries, eager: Any) -> None:
    model = build(family)
    model.chunk_tokens = budget
    slow = eager(model)
    expected = torch.cat([state for query in queries for state in slow.states(query)])
    torch.testing.assert_close(model.encode(*pack(queries)).double(), expected, rtol=1e-4, atol=1e-6)


def slow_passes(
    slow: Any, query: list[Tensor], target: list[int], k: int, guide: list[float] | None
) -> tuple[Tensor, Tensor]:
    """p's and q's logits [T, V] of one query: the chosen candidates' states concatenated, and nothing else."""
    states = slow.states(query)
    scores = [score.item() for score in slow.scores(states)]
    guide = scores if guide is None else [s if g != g else g for g, s in zip(guide, scores, strict=True)]
    selected, last = best(guide, k)
    return tuple(slow.logits([states[i] for i in chosen], target) for chosen in (selected, selected + last))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_decodes_the_selected_and_then_the_last_too(
    family: str, k: int, build: Any, pack: Pack, queries: Queries, targets: Tensor, eager: Any
) -> None:
    model = build(family, k)
    slow = eager(model)
    output = model(*pack(queries), targets)
    assert output.has_last_B.tolist() == [len(query) > k for query in queries]
    for b, query in enumerate(queries):
        p_TV, q_TV = slow_passes(slow, query, targets[b].tolist(), k, None)
        torch.testing.assert_close(logits(output)[0][b].double(), p_TV, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(output)[1][b].double(), q_TV, rtol=1e-4, atol=1e-5)
        assert (p_TV - q_TV).abs().max() > 1e-3 or len(query) <= k, "the last candidate must matter in this test"


GUIDE = [[0.1, 0.5, 0.2, 0.9, 0.3], [NAN], [2.0, 1.0, 3.0], [NAN, NAN], [-INF, 1.0, -INF, 0.0]]


def test_forward_selects_by_a_guide_and_by_the_prediction_where_it_is_nan(
    build: Any, pack: Pack, queries: Queries, targets: Tensor, eager: Any
) -> None:
    model = build()
    guide_BN = torch.full((5, 5), 77.0)  # padding must not be chosen
    for b, row in enumerate(GUIDE):
        guide_BN[b, : len(row)] = torch.tensor(row)
    output, free = model(*pack(queries), targets, guide_BN), model(*pack(queries), targets)
    torch.testing.assert_close(output.scores_BN, free.scores_BN, rtol=0, atol=0)
    for b, query in enumerate(queries):
        p_TV, q_TV = slow_passes(eager(model), query, targets[b].tolist(), 2, GUIDE[b])
        torch.testing.assert_close(logits(output)[0][b].double(), p_TV, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(output)[1][b].double(), q_TV, rtol=1e-4, atol=1e-5)
    everywhere_nan = model(*pack(queries), targets, torch.full((5, 5), NAN))
    torch.testing.assert_close(logits(everywhere_nan)[0], logits(free)[0], rtol=0, atol=0)


def within(scores: list[float], k: int, gap: float) -> list[int]:
    """Of the k best those that get at least exp(-gap) of the best one's score, in given order."""
    return [i for i in best(scores, k)[0] if scores[i] >= max(scores) * math.exp(-gap)]


def gap_between(scores: list[list[float]]) -> float:
    """A gap that some of the three best of the queries are within, and some are not, none of them narrowly."""
    ratios = sorted(math.log(max(row) / s) for row in scores for s in sorted(row)[-3:-1])
    widest = max(range(len(ratios) - 1), key=lambda i: ratios[i + 1] - ratios[i])
    assert ratios[widest + 1] - ratios[widest] > 1e-3, "the tiny model's scores must differ, or this proves little"
    return (ratios[widest] + ratios[widest + 1]) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gap_leaves_out_of_the_k_best_those_that_fall_behind(
    family: str, build: Any, pack: Pack, queries: Queries, targets: Tensor, eager: Any
) -> None:
    """In the passes of training and in fusing alike; the last stays the last."""
    model = build(family, 3)
    slow, packed = eager(model), pack(queries)
    states = [slow.states(query) for query in queries]
    scores = [[score.item() for score in slow.scores(own)] for own in states]
    gap = gap_between(scores)
    chosen = [within(own, 3, gap) for own in scores]
    assert any(len(own) < min(3, len(row)) for own, row in zip(chosen, scores, strict=True))
    assert any(len(own) > 1 for own in chosen)
    model.settings = replace(model.settings, k_gap=gap)
    output, ids_BT = model(*packed, targets), fused(model, packed)
    assert output.has_last_B.tolist() == [len(query) > 3 for query in queries]
    for b, (own, row) in enumerate(zip(states, scores, strict=True)):
        last = best(row, 3)[1]
        for logits_BTV, members in ((logits(output)[0], chosen[b]), (logits(output)[1], chosen[b] + last)):
            expected = slow.logits([own[i] for i in members], targets[b].tolist())
            torch.testing.assert_close(logits_BTV[b].double(), expected, rtol=1e-4, atol=1e-5)
        text = slow.greedy([own[i] for i in chosen[b]], STEPS)
        assert ids_BT[b].tolist()[1 : 1 + len(text)] == text


def test_a_gap_is_the_models_or_the_callers_and_none_beside_a_k_alone(build: Any, pack: Pack, queries: Queries) -> None:
    model = build(k=3)
    layout = pack(queries)[1]
    scores_BN = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.5]] * 5)
    sizes = [5, 1, 3, 2, 4]

    def counts(**given: Any) -> list[int]:
        return model.choose(scores_BN, layout, **given)[0].sum(1).tolist()

    assert counts() == [min(3, n) for n in sizes]
    assert counts(k_gap=0.5) == [min(2, n) for n in sizes]  # 3 is more than exp(-0.5) of 4, and 2 is less
    model.settings = replace(model.settings, k_gap=0.0)
    assert counts() == [1] * 5
    assert counts(k_gap=0.5) == [min(2, n) for n in sizes]
    assert counts(k=4) == [min(4, n) for n in sizes]
    assert counts(k=4, k_gap=1.0) == [min(3, n) for n in sizes]


def test_a_gap_counts_only_where_the_score_selects(build: Any, pack: Pack, queries: Queries) -> None:
    """A query that is selected by its labels, or by chance, takes K; one without a guide goes by its scores."""
    model = build(k=2)
    model.settings = replace(model.settings, k_gap=0.0)
    layout = pack(queries)[1]
    scores_BN = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.5]] * 5)
    guide_BN = torch.full((5, 5), 77.0)  # what stands at padding does not matter
    for b, row in enumerate(GUIDE):
        guide_BN[b, : len(row)] = torch.tensor(row)
    selected_BN, last_BN = model.choose(scores_BN, layout, guide_BN=guide_BN)
    assert [where(row) for row in selected_BN] == [[1, 3], [0], [0, 2], [0], [1, 3]]
    assert [where(row) for row in last_BN] == [[0], [], [1], [], [2]]


def test_leaving_out_the_last_changes_nothing_else(build: Any, pack: Pack, queries: Queries, targets: Tensor) -> None:
    model = build()
    both, alone = model(*pack(queries), targets), model(*pack(queries), targets, with_last=False)
    assert logits(alone)[1] is None
    assert torch.equal(alone.has_last_B, both.has_last_B)
    torch.testing.assert_close(alone.scores_BN, both.scores_BN, rtol=0, atol=0)
    torch.testing.assert_close(logits(alone)[0], logits(both)[0], rtol=1e-4, atol=1e-5)


def test_with_at_most_k_candidates_both_passes_are_one(
    build: Any, pack: Pack, queries: Queries, targets: Tensor
) -> None:
    output = build(k=5)(*pack(queries), targets)
    assert not output.has_last_B.any()
    torch.testing.assert_close(logits(output)[0], logits(output)[1], rtol=1e-5, atol=1e-6)


def test_company_and_padding_do_not_change_a_query(build: Any, pack: Pack, queries: Queries, targets: Tensor) -> None:
    model = build()
    together = model(*pack(queries), targets)
    for b, query in enumerate(queries):
        longer = torch.cat((targets[b : b + 1], torch.zeros(1, 3, dtype=torch.int64)), 1)
        alone = model(*pack([query]), longer)
        torch.testing.assert_close(alone.scores_BN[0], together.scores_BN[b, : len(query)], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(logits(alone)[0][0, :4], logits(together)[0][b], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(alone)[1][0, :4], logits(together)[1][b], rtol=1e-4, atol=1e-5)


def test_selection_passes_no_gradient_and_gold_quality_none_either(
    build: Any, pack: Pack, queries: Queries, targets: Tensor
) -> None:
    """The decoding passes do not train the ranking step by way of selection: only what they read is trained."""
    model = build()
    tokens_S, layout = pack(queries)
    guide_BN = torch.rand(layout.tokens_BN.shape, requires_grad=True)
    output = model(tokens_S, layout, targets, guide_BN)
    assert torch.autograd.grad(logits(output)[1].sum(), guide_BN, allow_unused=True) == (None,)
    free = model(tokens_S, layout, targets)
    assert torch.autograd.grad(logits(free)[0].sum(), free.scores_BN, allow_unused=True) == (None,)


# --------------------------------------------------------------------------------------------------------------------
# Fusing

STEPS = 7


def fused(model: Any, packed: tuple[Tensor, Layout], k: int | None = None, **options: Any) -> Tensor:
    tokens_S, layout = packed
    hidden_SD = model.encode(tokens_S, layout)
    selected_BN, _ = model.choose(model.rank(hidden_SD, layout), layout, k)
    return model.fuse(hidden_SD, layout, selected_BN, **({"max_new_tokens": STEPS} | options))


def assert_writes(model: Any, slow: Any, queries: Queries, ids_BT: Tensor, k: int) -> None:
    """The start token, the slow loop's text, and then padding."""
    for query, row in zip(queries, ids_BT.tolist(), strict=True):
        states = slow.states(query)
        selected, _ = best([score.item() for score in slow.scores(states)], k)
        text = slow.greedy([states[i] for i in selected], STEPS)
        assert row == [0, *text] + [0] * (len(row) - 1 - len(text))


@pytest.mark.parametrize("k", [1, 2, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_fusing_is_a_loop_of_argmax(
    family: str, k: int | None, build: Any, pack: Pack, queries: Queries, eager: Any
) -> None:
    model = build(family, 3)
    texts = fused(model, pack(queries), k=k)
    assert len(texts.unique(dim=0)) > 1, "the candidates must matter in this test"
    common = texts[:, 1:-1].flatten().mode().values.item()
    model.t5.config.eos_token_id = model.t5.generation_config.eos_token_id = common  # so that some texts end early
    ids_BT = fused(model, pack(queries), k=k)
    assert (ids_BT == common).any()
    assert_writes(model, eager(model), queries, ids_BT, k or 3)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_fused_text_depends_neither_on_company_nor_on_order(
    num_beams: int, build: Any, pack: Pack, queries: Queries
) -> None:
    model = build()
    together = fused(model, pack(queries), num_beams=num_beams)
    assert len(together.unique(dim=0)) > 1
    assert torch.equal(fused(model, pack([query[::-1] for query in queries]), num_beams=num_beams), together)
    for b, query in enumerate(queries):
        alone = fused(model, pack([query]), num_beams=num_beams)[0]
        assert torch.equal(together[b, : len(alone)], alone)
        assert not together[b, len(alone) :].any()


def test_fusing_reads_only_the_selected(build: Any, pack: Pack, queries: Queries) -> None:
    model = build()
    tokens_S, layout = pack(queries)
    hidden_SD = model.encode(tokens_S, layout)
    scores_BN = torch.rand(layout.tokens_BN.shape)
    selected_BN, _ = select(scores_BN, layout.mask_BN, 2)
    unread_S = ~selected_BN[layout.mask_BN].repeat_interleave(torch.tensor(layout.candidate_lengths))
    spoilt_SD = hidden_SD.masked_fill(unread_S.unsqueeze(1), 1e3)
    expected = model.fuse(hidden_SD, layout, selected_BN, max_new_tokens=STEPS)
    assert torch.equal(model.fuse(spoilt_SD, layout, selected_BN, max_new_tokens=STEPS), expected)


def test_fusing_reads_no_wider_than_what_was_chosen(
    build: Any, pack: Pack, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the candidates that were not chosen."""
    model = build(k=1)
    tokens_S, layout = pack([[*query, torch.full((200,), 7)] for query in queries])
    shortest_BN, _ = model.choose(-layout.tokens_BN.float(), layout)  # of up to 3 tokens
    read: list[Tensor] = []
    monkeypatch.setattr(model.backbone, "generate", lambda *given, **_: read.extend(given))
    model.fuse(model.encode(tokens_S, layout), layout, shortest_BN)
    assert layout.longest(1) >= 200
    assert read[0].shape[:2] == read[1].shape == (5, 8)


def test_the_settings_limit_the_text(build: Any, pack: Pack, queries: Queries) -> None:
    model = build()
    model.settings = replace(model.settings, target_tokens=3)
    hidden_SD, layout = model.encode(*pack(queries)), pack(queries)[1]
    assert model.fuse(hidden_SD, layout, layout.mask_BN).shape == (5, 1 + 3)


@pytest.mark.parametrize("depths", [(3, 1), (1, 3)])
def test_encoder_and_decoder_may_differ_in_depth(
    depths: tuple[int, int], build: Any, pack: Pack, queries: Queries, eager: Any
) -> None:
    """ByT5 and T5-Efficient have one deeper than the other."""
    model = build("t5", 2)
    shape = {"num_layers": depths[0], "num_decoder_layers": depths[1]}
    model.t5 = type(model.t5)(type(model.t5.config)(**(model.t5.config.to_dict() | shape))).eval()
    assert_writes(model, eager(model), queries, fused(model, pack(queries)), 2)
