"""Layout: packed tokens to rows and back, for any ragged shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from urg.layout import Layout, plan_chunks

LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


@given(lengths=LENGTHS)
@settings(max_examples=40)
def test_layout_leads_from_every_packed_token_to_its_row_and_candidate(lengths: list[list[int]]) -> None:
    layout = Layout.of(lengths)
    index = 0
    for b, row in enumerate(lengths):
        place = 0
        for n, length in enumerate(row):
            assert layout.tokens_BN[b, n] == length
            for _ in range(length):
                assert layout.mask_BL[b, place]
                assert (layout.token_BL[b, place], layout.owner_BL[b, place]) == (index, n)
                index, place = index + 1, place + 1
        assert not layout.mask_BL[b, place:].any()
        assert not layout.tokens_BN[b, len(row) :].any()
    assert layout.mask_BL.sum() == index
    assert layout.candidate_lengths == [length for row in lengths for length in row]


@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=40)
def test_a_response_is_what_follows_the_question(lengths: list[list[int]], data: st.DataObject) -> None:
    questions = [data.draw(st.integers(0, min(row))) for row in lengths]
    layout = Layout.of(lengths, questions)
    for b, (row, question) in enumerate(zip(lengths, questions, strict=True)):
        expected = [place >= question for length in row for place in range(length)]
        assert layout.response_BL[b, : len(expected)].tolist() == expected
        assert not layout.response_BL[b, len(expected) :].any()
    assert torch.equal(Layout.of(lengths).response_BL, layout.mask_BL)


@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=40)
def test_some_rows_of_a_layout_still_lead_into_all_tokens(lengths: list[list[int]], data: st.DataObject) -> None:
    questions = [data.draw(st.integers(0, min(row))) for row in lengths]
    layout = Layout.of(lengths, questions)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    some = layout.rows(rows)
    assert [list(row) for row in some.lengths] == [lengths[b] for b in rows]
    assert some.token_BL.shape == (len(rows), max(sum(lengths[b]) for b in rows))
    for name in ("token_BL", "mask_BL", "owner_BL", "response_BL"):
        whole = getattr(layout, name)[rows]
        assert torch.equal(getattr(some, name), whole[:, : some.token_BL.shape[1]])
        assert not whole[:, some.token_BL.shape[1] :].any()
    assert torch.equal(some.tokens_BN, layout.tokens_BN[rows])


@given(lengths=LENGTHS)
@settings(max_examples=40)
def test_layout_is_no_wider_than_its_largest_query(lengths: list[list[int]]) -> None:
    layout = Layout.of(lengths)
    assert layout.token_BL.shape == layout.mask_BL.shape == layout.owner_BL.shape
    assert layout.token_BL.shape[1] == max(sum(row) for row in lengths)
    assert layout.tokens_BN.shape == layout.mask_BN.shape == (len(lengths), max(len(row) for row in lengths))
    assert layout.mask_BN.sum(1).tolist() == [len(row) for row in lengths]
    assert not layout.token_BL[~layout.mask_BL].any()
    assert not layout.owner_BL[~layout.mask_BL].any()


@given(lengths=LENGTHS, k=st.integers(1, 6))
@settings(max_examples=40)
def test_longest_is_what_the_k_longest_candidates_of_a_query_need(lengths: list[list[int]], k: int) -> None:
    longest = 0
    for row in lengths:
        longest = max(longest, sum(sorted(row)[-k:]))
    layout = Layout.of(lengths)
    assert longest <= layout.longest(k) <= min(longest + 63, layout.token_BL.shape[1])


@pytest.mark.parametrize("lengths", [[], [[]], [[3], []], [[3, 0]], [[2], [4, -1]]])
def test_a_query_without_candidates_or_a_candidate_without_tokens_is_an_error(lengths: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one real token"):
        Layout.of(lengths)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), budget=st.integers(1, 100))
@settings(max_examples=60)
def test_chunks_hold_every_candidate_once_and_keep_the_budget(lengths: list[int], budget: int) -> None:
    chunks = plan_chunks(lengths, budget)
    assert sorted(index for _, chunk in chunks for index in chunk) == list(range(len(lengths)))
    for padded, chunk in chunks:
        assert padded % 8 == 0
        assert max(lengths[index] for index in chunk) == lengths[chunk[0]] <= padded < lengths[chunk[0]] + 8
        assert padded * len(chunk) <= budget or len(chunk) == 1


def test_chunks_are_few_where_the_budget_is_large() -> None:
    assert plan_chunks([3, 1, 2], 24) == [(8, [0, 2, 1])]
    assert plan_chunks([3, 1, 12], 23) == [(16, [2]), (8, [0, 1])]
    assert plan_chunks([5, 5], 1) == [(8, [0]), (8, [1])]
