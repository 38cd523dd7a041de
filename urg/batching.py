"""Which rows make a step, and the tensors of one micro-batch.

The order of an epoch is a permutation keyed by (seed, epoch), and the cursor is a global sample offset; neither depends
on the number of workers. So a run resumes exactly, each row is used once an epoch (the last batch of an epoch is
smaller, nothing is dropped), and any number of workers sees the same global batches.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.shards import TokenizedExample
from data_pipeline.tokenization import Template
from urg.layout import Layout, round_up


@dataclass(frozen=True)
class Cursor:
    """Where training stands in the data."""

    epoch: int = 0
    """Whole passes done."""
    offset: int = 0
    """Rows of the current epoch that are used up, over all workers."""


class GlobalBatches:
    """The sequence of global batches over `rows` rows, from any cursor on."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        if rows < 1 or batch < 1:
            raise ValueError(f"rows={rows} and batch={batch} must be positive.")
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the smaller last one included."""
        return -(-self.rows // self.batch)

    def at(self, cursor: Cursor) -> tuple[np.ndarray, Cursor]:
        """Row indices int64 [≤ batch] of the global batch at `cursor`, and the cursor after it."""
        if cursor.epoch != self._epoch:
            self._epoch = cursor.epoch
            self._order = np.random.default_rng((self.seed, cursor.epoch)).permutation(self.rows)
        end = min(cursor.offset + self.batch, self.rows)
        after = Cursor(cursor.epoch, end) if end < self.rows else Cursor(cursor.epoch + 1, 0)
        return self._order[cursor.offset : end], after


def micro_batches(
    rows: np.ndarray, tokens: np.ndarray, rank: int, world: int, accumulation: int, budget: int | None = None
) -> list[np.ndarray]:
    """This worker's share of a global batch: arrays of rows, as many on every worker; some may be empty.

    The longest row first, each goes where the fewest tokens are (Graham's longest-processing-time rule): workers wait
    for one another after each micro-batch, and its memory is that of its tokens. So the fullest micro-batch has at most
    the tokens of a longest row more than any other. Over all ranks each row is there exactly once.

    tokens: what each of `rows` costs, [rows]. accumulation: how many micro-batches, or, with a budget, how many at
    least: as many more as it takes for none to hold over `budget` tokens, but for a row that does so alone.
    """
    count = accumulation
    if budget is not None:  # as many as all tokens need, but never more than rows
        count = max(count, min(-(-int(tokens.sum()) // (budget * world)), -(-len(rows) // world)))
    place_R = _places(tokens, world * count)
    while budget is not None and _overfull(tokens, place_R, budget):
        count += 1
        place_R = _places(tokens, world * count)
    return [rows[place_R == micro * world + rank] for micro in range(count)]


def _places(tokens: np.ndarray, count: int) -> np.ndarray:
    """int64 [rows]: in which of `count` places each row goes."""
    places = [(0, 0, place) for place in range(count)]  # (tokens, rows, where): a heap
    place_R = np.empty(len(tokens), dtype=np.int64)
    for index in np.argsort(-tokens, kind="stable"):
        held, rows, place = places[0]
        heapq.heapreplace(places, (held + int(tokens[index]), rows + 1, place))
        place_R[index] = place
    return place_R


def _overfull(tokens: np.ndarray, place_R: np.ndarray, budget: int) -> bool:
    """Whether several rows in one place are more than the budget."""
    held = np.bincount(place_R, weights=tokens)
    return bool(((held > budget) & (np.bincount(place_R) > 1)).any())


@dataclass(frozen=True)
class Batch:
    """The tensors of one micro-batch. Letters as in layout.py; T target tokens."""

    tokens_S: Tensor
    """int64 [S]: the candidates' tokens, packed."""
    layout: Layout
    """Where they stand."""
    target_BT: Tensor
    """int64 [B, T]: the references' tokens, padded."""
    target_P: Tensor
    """int64 [P]: where the real target tokens, the first ones of a row, stand in the flat [B·T]; a filler has none."""
    quality_BN: Tensor
    """fp32 [B, N]: the label, higher is better; NaN where it is missing."""
    weight_B: Tensor
    """fp32 [B]: 1, or 0 for a filler row, which keeps a worker in step with the others and changes nothing."""

    @property
    def real_targets(self) -> Tensor:
        """int64 [P]: the real target tokens."""
        return self.target_BT.flatten()[self.target_P]


def candidate_tokens(examples: Sequence[TokenizedExample], template: Template) -> list[list[np.ndarray]]:
    """The encoder's input for each candidate of each example: `<question> x </s> <response> y </s>`."""
    return [[template.candidate_ids(row.question_ids, ids) for ids in row.response_ids] for row in examples]


def pack(sequences: list[list[np.ndarray]], questions: list[int] | None = None) -> tuple[Tensor, Layout]:
    """Candidates' token ids a query → packed int64 [S] and their layout. questions: see `Layout.of`."""
    flat = [ids for row in sequences for ids in row]
    lengths = [[len(ids) for ids in row] for row in sequences]
    return torch.from_numpy(np.concatenate(flat).astype(np.int64)), Layout.of(lengths, questions)


def collate(examples: Sequence[TokenizedExample], template: Template, label: str | None, fillers: int = 0) -> Batch:
    """Examples → tensors. The last `fillers` examples get weight 0. label: name of the score to rank by, or None."""
    questions = [template.question_length(len(row.question_ids)) for row in examples]
    tokens_S, layout = pack(candidate_tokens(examples, template), questions)
    size = (len(examples), round_up(max(1, max(len(row.target_ids) for row in examples))))
    target_BT = torch.full(size, template.pad_id, dtype=torch.int64)
    place_P = [torch.empty(0, dtype=torch.int64)]
    quality_BN = torch.full(tuple(layout.tokens_BN.shape), float("nan"))
    weight_B = torch.ones(len(examples))
    for b, row in enumerate(examples):
        real = len(row.target_ids)
        target_BT[b, :real] = torch.from_numpy(np.array(row.target_ids, dtype=np.int64))
        if b >= len(examples) - fillers:
            weight_B[b] = 0.0
            continue
        place_P.append(torch.arange(b * size[1], b * size[1] + real))
        if label is not None and label in row.scores:
            quality_BN[b, : len(row.models)] = torch.from_numpy(np.asarray(row.scores[label], dtype=np.float32))
    return Batch(tokens_S, layout, target_BT, torch.cat(place_P), quality_BN, weight_B)
