"""Ranking losses and scales: each against a loop from its source, and on ragged, partly labelled queries."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from urg.losses import QUALITY_SCALES, RANK_LOSSES, RANK_SCALES, rank_loss

NAN = float("nan")
LOSSES, SCALES = sorted(RANK_LOSSES), sorted(RANK_SCALES)
PAIRWISE = ["hinge", "margin", "logistic"]

# --------------------------------------------------------------------------------------------------------------------
# The sources, one query at a time. s: what the loss sees of the scores; r: quality, higher is better.


def hinge(s: list[float], r: list[float]) -> float:
    """URG, equation 7."""
    return sum(max(0.0, s[i] - s[j]) for i in range(len(s)) for j in range(len(s)) if r[i] < r[j])


def margin(s: list[float], r: list[float]) -> float:
    """SimCLS, equation 2, second sum: λ_ij = (j − i) λ between positions in the list sorted by quality, λ = 1/N."""
    position = [sorted(r, reverse=True).index(value) for value in r]
    total = 0.0
    for better in range(len(s)):
        for worse in range(len(s)):
            if position[better] < position[worse]:
                total += max(0.0, s[worse] - s[better] + (position[worse] - position[better]) / len(s))
    return total


def logistic(s: list[float], r: list[float]) -> float:
    """RankNet: C = −o + log(1 + e^o), o = s_better − s_worse, where the target probability is 1."""
    total = 0.0
    for better in range(len(s)):
        for worse in range(len(s)):
            if r[better] > r[worse]:
                o = s[better] - s[worse]
                total += -o + math.log(1 + math.exp(o))
    return total


def listnet(s: list[float], r: list[float]) -> float:
    """ListNet: −Σ P_r(i) log P_s(i), top-one probabilities; quality in 0..1, temperature 0.1."""
    span = max(r) - min(r)
    unit = [(value - min(r)) / span / 0.1 if span else 0.0 for value in r]
    target = [math.exp(value) / sum(math.exp(other) for other in unit) for value in unit]
    return -sum(p * math.log(math.exp(a) / sum(math.exp(b) for b in s)) for p, a in zip(target, s, strict=True))


def listmle(s: list[float], r: list[float]) -> float:
    """ListMLE: −log Π_k exp(s_k) / Σ_{l ≥ k} exp(s_l) over the list sorted by quality, ties by index."""
    order = sorted(range(len(s)), key=lambda i: (-r[i], i))
    probability = 1.0
    for k, first in enumerate(order):
        probability *= math.exp(s[first]) / sum(math.exp(s[rest]) for rest in order[k:])
    return -math.log(probability)


SOURCE: dict[str, Callable[[list[float], list[float]], float]] = {
    "hinge": hinge,
    "margin": margin,
    "logistic": logistic,
    "listnet": listnet,
    "listmle": listmle,
}


def scaled(s: list[float], tokens: list[int], scale: str) -> list[float]:
    """A scale's definition, over all candidates of one query."""
    share = [score * length for score, length in zip(s, tokens, strict=True)]
    unit = [score * sum(tokens) for score in s]
    logs = {"log": [math.log(value) for value in unit], "log_mass": [math.log(value) for value in share]}
    return ({"attention": s, "mass": share, "unit": unit} | logs)[scale]


def of_source(loss: str, scale: str, s: list[float], tokens: list[int], r: list[float]) -> float:
    """The loss of one query; unlabelled candidates count for the scale and are absent from the loss."""
    seen = scaled(s, tokens, scale)
    labelled = [i for i in range(len(s)) if not math.isnan(r[i])]
    if len(labelled) < 2:
        return 0.0
    return SOURCE[loss]([seen[i] for i in labelled], [r[i] for i in labelled])


# --------------------------------------------------------------------------------------------------------------------
# Ragged batches

Row = tuple[list[float], list[int], list[float]]


def padded(
    rows: list[Row], score_at_padding: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (scores, tokens, quality) → scores, tokens, quality [B, N], with one column more than the longest needs."""
    width = max(len(row[0]) for row in rows) + 1
    scores = [s + [score_at_padding] * (width - len(s)) for s, _, _ in rows]
    tokens = [length + [0] * (width - len(length)) for _, length, _ in rows]
    quality = [r + [NAN] * (width - len(r)) for _, _, r in rows]
    return torch.tensor(scores, dtype=dtype), torch.tensor(tokens), torch.tensor(quality, dtype=dtype)


@st.composite
def candidates(draw: st.DrawFn) -> Row:
    """One query of up to five candidates, with ties and missing labels."""
    n = draw(st.integers(1, 5))
    s = draw(st.lists(st.floats(0.001, 1.0), min_size=n, max_size=n))
    tokens = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    r = draw(st.lists(st.sampled_from([-3.5, -2.25, 0.0, 0.5, NAN]), min_size=n, max_size=n))
    return s, tokens, r


ROWS = st.lists(candidates(), min_size=1, max_size=4)
FIXED: list[Row] = [
    ([0.05, 0.02, 0.07, 0.01], [4, 9, 2, 5], [-2.0, -1.0, -3.0, -1.5]),
    ([0.11, 0.09], [6, 2], [0.2, 0.4]),
    ([0.03, 0.06, 0.02], [7, 8, 3], [1.0, NAN, 2.0]),
    ([0.5], [2], [1.0]),
    ([0.2, 0.3], [2, 2], [NAN, NAN]),
]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loss", LOSSES)
@given(rows=ROWS)
@settings(max_examples=25)
def test_each_loss_and_scale_is_its_source(loss: str, scale: str, rows: list[Row]) -> None:
    ours = rank_loss(*padded(rows), loss, scale)
    torch.testing.assert_close(
        ours, torch.tensor([of_source(loss, scale, *row) for row in rows], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loss", LOSSES)
def test_autograd_is_the_numerical_gradient(loss: str, scale: str) -> None:
    scores, tokens, quality = padded(FIXED)
    assert torch.autograd.gradcheck(
        lambda s: rank_loss(s, tokens, quality, loss, scale), scores.requires_grad_(), eps=1e-7, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loss", LOSSES)
def test_padding_and_unlabelled_rows_have_no_gradient(loss: str, scale: str, dtype: torch.dtype) -> None:
    scores, tokens, quality = padded(FIXED, dtype=dtype)
    scores.requires_grad_()
    rank_loss(scores, tokens, quality, loss, scale).sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[tokens == 0] == 0).all()
    assert (scores.grad[3:] == 0).all(), "one candidate, or no label, teaches nothing"
    assert (scores.grad[:2] != 0).any()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_stands_at_padding_does_not_matter(loss: str, scale: str) -> None:
    empty, tokens, quality = padded(FIXED)
    other, _, _ = padded(FIXED, score_at_padding=7.0)
    labelled = quality.masked_fill(tokens == 0, 5.0)
    expected = rank_loss(empty, tokens, quality, loss, scale)
    torch.testing.assert_close(rank_loss(other, tokens, labelled, loss, scale), expected, rtol=0, atol=0)
    alone = torch.cat([rank_loss(*padded([row]), loss, scale) for row in FIXED])
    torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_fewer_than_two_labels_give_zero(loss: str) -> None:
    rows: list[Row] = [([0.4], [3], [1.0]), ([0.4, 0.1], [3, 1], [1.0, NAN]), ([0.4, 0.1], [3, 1], [NAN, NAN])]
    assert rank_loss(*padded(rows), loss).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("loss", PAIRWISE)
def test_equal_quality_gives_no_pair(loss: str) -> None:
    row: Row = ([0.4, 0.1, 0.3], [3, 1, 2], [-2.0, -2.0, -2.0])
    assert rank_loss(*padded([row]), loss).tolist() == [0.0]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_candidates_does_not_matter(loss: str) -> None:
    s, tokens, r = [0.05, 0.02, 0.07, 0.01], [4, 9, 2, 5], [-2.0, -1.0, -3.0, -1.5]
    expected = rank_loss(*padded([(s, tokens, r)]), loss, "unit")
    for order in ([3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]):
        row = ([s[i] for i in order], [tokens[i] for i in order], [r[i] for i in order])
        torch.testing.assert_close(rank_loss(*padded([row]), loss, "unit"), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_constant_added_to_all_scores_changes_nothing(loss: str) -> None:
    s, _, r = padded(FIXED[:1])
    mask = ~r.isnan()
    values = [RANK_LOSSES[loss](s + shift, r.nan_to_num(), mask) for shift in (0.0, 1.0, -30.0)]
    torch.testing.assert_close(torch.stack(values), values[0].expand(3, -1), rtol=1e-9, atol=1e-9)


def test_hinge_is_zero_exactly_where_the_order_is_right() -> None:
    quality = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    tokens = torch.ones(1, 3, dtype=torch.int64)
    assert rank_loss(torch.tensor([[0.5, 0.1, 0.4]]), tokens, quality).item() == 0.0
    assert rank_loss(torch.tensor([[0.5, 0.4, 0.1]]), tokens, quality).item() == pytest.approx(0.3)
    assert rank_loss(torch.tensor([[0.1, 0.5, 0.4]]), tokens, quality).item() == pytest.approx(0.4 + 0.3 + 0.1)


def test_hinge_has_no_gradient_where_all_scores_are_equal_and_the_others_have() -> None:
    quality = torch.tensor([[3.0, 1.0, 2.0]])
    for loss in LOSSES:
        scores = torch.full((1, 3), 0.1, requires_grad=True)
        rank_loss(scores, torch.ones(1, 3, dtype=torch.int64), quality, loss).sum().backward()
        assert bool(scores.grad.any()) == (loss != "hinge"), loss


def test_margin_asks_for_more_between_candidates_that_are_further_apart() -> None:
    tokens, quality = torch.ones(1, 3, dtype=torch.int64), torch.tensor([[3.0, 2.0, 2.0]], dtype=torch.float64)
    scores = torch.zeros(1, 3, dtype=torch.float64)
    assert rank_loss(scores, tokens, quality, "margin").item() == pytest.approx(2 / 3), "equals share a rank"
    assert rank_loss(torch.tensor([[1.0, 0.5, 0.0]]), tokens, torch.tensor([[3.0, 2.0, 1.0]]), "margin").item() == 0.0


@given(rows=st.lists(candidates(), min_size=1, max_size=1), data=st.data())
@settings(max_examples=30)
def test_listnet_is_least_where_scores_are_the_target_logits(rows: list[Row], data: st.DataObject) -> None:
    quality = padded(rows)[2]
    mask = ~quality.isnan()
    if mask.sum() < 2:
        return
    real = quality[mask]
    best = ((quality - real.min()) / (real.max() - real.min()).clamp_min(1e-300) / 0.1).nan_to_num(0.0).requires_grad_()
    least = RANK_LOSSES["listnet"](best, quality.nan_to_num(), mask)
    (gradient,) = torch.autograd.grad(least.sum(), best)
    assert gradient.abs().max() < 1e-12
    step = data.draw(st.lists(st.floats(-3, 3), min_size=best.shape[1], max_size=best.shape[1]))
    moved = RANK_LOSSES["listnet"](best + torch.tensor([step], dtype=torch.float64), quality.nan_to_num(), mask)
    assert (moved >= least - 1e-12).all()


@given(rows=ROWS)
@settings(max_examples=20)
def test_scales_agree_with_one_another(rows: list[Row]) -> None:
    s, tokens, _ = padded(rows)
    share = s * tokens / (s * tokens).sum(1, keepdim=True)  # attention sums to 1 over the tokens of a query
    s = torch.where(tokens > 0, share / tokens.clamp_min(1), 0.0)
    assert torch.equal(RANK_SCALES["attention"](s, tokens), s)
    torch.testing.assert_close(RANK_SCALES["mass"](s, tokens).sum(1), torch.ones(len(rows), dtype=torch.float64))
    fair = (tokens > 0) / tokens.sum(1, keepdim=True).double()
    torch.testing.assert_close(RANK_SCALES["unit"](fair, tokens), (tokens > 0).double())
    log = RANK_SCALES["log"](s, tokens)
    torch.testing.assert_close(log[tokens > 0].exp(), RANK_SCALES["unit"](s, tokens)[tokens > 0])
    assert log.isfinite().all()
    log_mass = RANK_SCALES["log_mass"](s, tokens)
    torch.testing.assert_close(log_mass[tokens > 0].exp(), (s * tokens)[tokens > 0])
    assert log_mass.isfinite().all()


def test_attention_that_does_not_depend_on_length_prefers_the_short_but_under_log_mass() -> None:
    """As a [CLS] that attends to marks, a fixed number a candidate."""
    tokens = torch.tensor([[10, 40, 20]])
    s = (torch.tensor([[1.0, 1.0, 1.0]]) / 3) / tokens
    assert RANK_SCALES["log"](s, tokens).argsort(descending=True).tolist() == [[0, 2, 1]]
    torch.testing.assert_close(RANK_SCALES["log_mass"](s, tokens), torch.full((1, 3), 1 / 3).log())


# --------------------------------------------------------------------------------------------------------------------
# What a target is made of


@given(rows=ROWS)
@settings(max_examples=50)
def test_the_default_target_is_that_of_before_bit_for_bit(rows: list[Row]) -> None:
    """Softmax of the labels, brought to 0..1 within their query, over 0.1; as it stood before it could be chosen."""
    scores, tokens, quality = padded(rows, dtype=torch.float32)
    mask = (tokens > 0) & ~quality.isnan()
    low = quality.masked_fill(~mask, math.inf).amin(1, keepdim=True)
    high = quality.masked_fill(~mask, -math.inf).amax(1, keepdim=True)
    unit = (quality.masked_fill(~mask, 0.0) - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    hidden, nothing = ~mask, torch.finfo(torch.float32).min / 2
    target = torch.softmax((unit.masked_fill(hidden, 0.0) / 0.1).masked_fill(hidden, nothing), 1)
    log_p = torch.log_softmax(RANK_SCALES["log"](scores, tokens.float()).masked_fill(hidden, nothing), 1)
    before = -(target * log_p).masked_fill(hidden, 0.0).sum(1)
    assert torch.equal(rank_loss(scores, tokens, quality, "listnet", "log"), before)
    own = rank_loss(scores, tokens, quality, "listnet", "log", quality_scale="minmax", temperature=0.1)
    assert torch.equal(own, before)


@pytest.mark.parametrize("loss", LOSSES)
@given(rows=ROWS)
@settings(max_examples=25)
def test_by_rank_only_the_order_of_the_labels_counts(loss: str, rows: list[Row]) -> None:
    scores, tokens, quality = padded(rows)
    expected = rank_loss(scores, tokens, quality, loss, "log", quality_scale="rank")
    for rising in (torch.exp, lambda r: r**3 + 7, lambda r: 1e-6 * r):
        assert torch.equal(rank_loss(scores, tokens, rising(quality), loss, "log", quality_scale="rank"), expected)


def test_by_rank_equals_share_a_place_and_the_others_lie_at_equal_distances() -> None:
    quality = torch.tensor([[9e-4, 0.94, 1e-5, 0.94, 0.0], [5.0, 5.0, 1.0, 0.0, 7.0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = QUALITY_SCALES["rank"](quality, mask)
    torch.testing.assert_close(found[0], torch.tensor([4, 7, 2, 7, 0]) / 7)  # of the places 0 to 4, the best two 3.5
    assert found[1].tolist() == [0.0] * 5, "all equal, and others are not there"


@given(rows=ROWS, temperature=st.floats(0.05, 5.0), quality_scale=st.sampled_from(sorted(QUALITY_SCALES)))
@settings(max_examples=50)
def test_a_target_is_the_softmax_of_its_scale_at_its_temperature(
    rows: list[Row], temperature: float, quality_scale: str
) -> None:
    scores, tokens, quality = padded(rows)
    found = rank_loss(scores, tokens, quality, "listnet", quality_scale=quality_scale, temperature=temperature)
    for value, (s, _, r) in zip(found.tolist(), rows, strict=True):
        labelled = [i for i in range(len(s)) if not math.isnan(r[i])]
        own = [r[i] for i in labelled]
        if quality_scale == "rank":
            own = [sum(other < one for other in own) + sum(other == one for other in own) / 2 for one in own]
        span = max(own, default=0.0) - min(own, default=0.0)
        weight = [math.exp((one - min(own)) / span / temperature if span else 0.0) for one in own]
        total = sum(math.exp(s[i]) for i in labelled)
        terms = [w / sum(weight) * (s[i] - math.log(total)) for w, i in zip(weight, labelled, strict=True)]
        assert value == pytest.approx(-sum(terms), rel=1e-9, abs=1e-9)


def test_temperature_and_scale_are_of_listnet_alone() -> None:
    for loss in set(LOSSES) - {"listnet"}:
        other = rank_loss(*padded(FIXED), loss, quality_scale="rank", temperature=3.0)
        assert torch.equal(other, rank_loss(*padded(FIXED), loss)), loss


@pytest.mark.parametrize("names", [("hinges", "attention"), ("hinge", "sqrt")])
def test_unknown_names_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(KeyError):
        rank_loss(*padded(FIXED), *names)
