from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.quality.batches import in_batches, length_batches, log_probabilities, padded


@given(st.lists(st.integers(0, 50)), st.integers(1, 120))
def test_batches_hold_each_item_once_sorted_and_within_the_budget(lengths: list[int], budget: int):
    batches = list(length_batches(lengths, budget))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget for batch in batches)


def test_values_come_back_in_the_items_order():
    assert in_batches([3, 1, 2], 4, lambda batch: [10.0 * index for index in batch]) == [0.0, 10.0, 20.0]


def test_padding_and_mask():
    ids, mask = padded([[5, 6], [7]], 9, "cpu")
    assert ids.tolist() == [[5, 6], [7, 9]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_log_probabilities_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    values = log_probabilities(logits, torch.tensor([[1, 2]]), torch.tensor([[1, 0]]))
    assert values.tolist() == [pytest.approx([-1.3862944, 0.0])]
