"""The order of rows, their share for each worker, and the tensors of a micro-batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shards import TokenizedExample
from data_pipeline.tokenization import Template
from urg.batching import Cursor, GlobalBatches, collate, micro_batches

TEMPLATE = Template(question_id=3, response_id=4, eos_id=1, pad_id=0)


def _run(batches: GlobalBatches, cursor: Cursor, steps: int) -> list[list[int]]:
    taken = []
    for _ in range(steps):
        rows, cursor = batches.at(cursor)
        taken.append(rows.tolist())
    return taken


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_each_epoch_uses_every_row_once(rows: int, batch: int, epoch: int) -> None:
    batches = GlobalBatches(rows, batch, seed=7)
    taken = _run(batches, Cursor(epoch=epoch), batches.steps_per_epoch)
    assert sorted(row for step in taken for row in step) == list(range(rows))


def test_epochs_and_seeds_differ() -> None:
    first, second = (GlobalBatches(50, 50, seed=0).at(Cursor(epoch))[0].tolist() for epoch in (0, 1))
    other_seed = GlobalBatches(50, 50, seed=1).at(Cursor())[0].tolist()
    assert first != second
    assert first != other_seed


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 12))
def test_a_cursor_continues_where_it_was_taken(rows: int, batch: int, before: int) -> None:
    whole = _run(GlobalBatches(rows, batch, 0), Cursor(), before + 5)
    cursor = Cursor()
    for _ in range(before):
        _, cursor = GlobalBatches(rows, batch, 0).at(cursor)
    assert _run(GlobalBatches(rows, batch, 0), cursor, 5) == whole[before:]


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=24)


@given(LENGTHS, st.sampled_from([(1, 1), (1, 6), (2, 3), (3, 2), (6, 1)]))
def test_workers_and_micro_batches_share_each_row_once(lengths: list[int], split: tuple[int, int]) -> None:
    world, accumulation = split
    rows, tokens = np.arange(len(lengths)) + 100, np.array(lengths)
    shares = [micro_batches(rows, tokens, rank, world, accumulation) for rank in range(world)]
    assert all(len(share) == accumulation for share in shares)
    assert sorted(int(row) for share in shares for part in share for row in part) == rows.tolist()


@given(LENGTHS, st.integers(1, 6))
def test_micro_batches_differ_by_a_longest_row_at_most(lengths: list[int], world: int) -> None:
    tokens = np.array(lengths)
    shares = [micro_batches(np.arange(len(lengths)), tokens, rank, world, 1)[0] for rank in range(world)]
    held = [int(tokens[share].sum()) for share in shares]
    assert max(held) - min(held) <= max(lengths)
    assert max(held) <= sum(lengths) / world + max(lengths) * (1 - 1 / world)


@given(LENGTHS, st.sampled_from([(1, 1), (1, 3), (2, 2), (5, 1)]), st.integers(1, 1500))
def test_a_token_budget_is_kept_by_more_micro_batches(lengths: list[int], split: tuple[int, int], budget: int) -> None:
    world, accumulation = split
    rows, tokens = np.arange(len(lengths)), np.array(lengths)
    shares = [micro_batches(rows, tokens, rank, world, accumulation, budget) for rank in range(world)]
    parts = [part for share in shares for part in share]
    assert all(int(tokens[part].sum()) <= budget or len(part) == 1 for part in parts)
    assert sorted(int(row) for part in parts for row in part) == rows.tolist()
    (count,) = {len(share) for share in shares}
    assert accumulation <= count <= max(accumulation, -(-len(rows) // world))
    if count > accumulation:  # one fewer would not do: too many tokens in all, or rows that do not fit together
        fewer = [micro_batches(rows, tokens, rank, world, count - 1) for rank in range(world)]
        held = [int(tokens[part].sum()) for share in fewer for part in share if len(part) > 1]
        assert sum(lengths) > budget * world * (count - 1) or max(held) > budget


def test_a_budget_that_is_met_changes_nothing() -> None:
    tokens = np.array([30, 10, 20, 40])
    whole = micro_batches(np.arange(4), tokens, 0, 2, 2)
    assert [part.tolist() for part in whole] == [
        part.tolist() for part in micro_batches(np.arange(4), tokens, 0, 2, 2, 40)
    ]


def test_rows_of_one_length_are_spread_evenly() -> None:
    shares = [micro_batches(np.arange(7), np.zeros(7), rank, 3, 1)[0] for rank in range(3)]
    assert sorted(map(len, shares)) == [2, 2, 3]


def test_rows_and_batch_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rows=0"):
        GlobalBatches(0, 4, 0)


def _example(responses: list[list[int]], target: list[int], scores: list[float]) -> TokenizedExample:
    ids = tuple(np.array(response, dtype=np.int32) for response in responses)
    names = tuple(f"m{i}" for i in range(len(ids)))
    arrays = {"question_ids": np.array([9, 8], dtype=np.int32), "target_ids": np.array(target, dtype=np.int32)}
    return TokenizedExample(
        "id", "", "", "", names, names, {"quality": np.array(scores)}, None, response_ids=ids, **arrays
    )


def test_collate_packs_candidates_and_pads_targets() -> None:
    rows = [_example([[5], []], [7, 1], [0.5, np.nan]), _example([[5, 6]], [1], [0.25])]
    batch = collate(rows, TEMPLATE, "quality")
    assert batch.tokens_S.tolist() == [3, 9, 8, 1, 4, 5, 1, 3, 9, 8, 1, 4, 1, 3, 9, 8, 1, 4, 5, 6, 1]
    assert batch.layout.lengths == ((7, 6), (8,))
    counted = batch.tokens_S[batch.layout.token_BL][batch.layout.response_BL]
    assert counted.tolist() == [4, 5, 1, 4, 1, 4, 5, 6, 1]  # from <response> on
    assert batch.target_BT.tolist() == [[7, 1] + [0] * 6, [1] + [0] * 7]  # eight columns: few distinct shapes
    assert batch.target_P.tolist() == [0, 1, batch.target_BT.shape[1]]
    assert torch.equal(batch.real_targets, torch.tensor([*rows[0].target_ids, *rows[1].target_ids]))
    torch.testing.assert_close(
        batch.quality_BN, torch.tensor([[0.5, float("nan")], [0.25, float("nan")]]), equal_nan=True
    )


def test_a_filler_row_has_no_label_and_no_target() -> None:
    rows = [_example([[5], [6]], [7, 1], [0.5, 0.1])] * 2
    batch = collate(rows, TEMPLATE, "quality", fillers=1)
    assert batch.weight_B.tolist() == [1.0, 0.0]
    assert (batch.target_P < batch.target_BT.shape[1]).all()
    assert batch.quality_BN[1].isnan().all()


def test_without_a_label_all_quality_is_missing() -> None:
    assert collate([_example([[5]], [1], [0.5])], TEMPLATE, None).quality_BN.isnan().all()
