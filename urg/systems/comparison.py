"""From comparisons of pairs to a ranking: all ordered pairs aggregated, or one run of bubble sort. Source: Jiang 2023.

M[i, j] is the logit that candidate i, shown on the left, beats candidate j, shown on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from urg.systems.protocol import Scores

Pair = tuple[int, int, int]  # row, left, right
Compare = Callable[[Sequence[Pair]], np.ndarray]  # logits [len(pairs)]: left beats right


def max_logits(matrix_NN: np.ndarray) -> Scores:
    """The mean of M - Mᵀ over the second candidate: [N]."""
    return np.asarray((matrix_NN - matrix_NN.T).mean(axis=1), dtype=np.float64)


def max_wins(matrix_NN: np.ndarray) -> Scores:
    """How many of its 2(N-1) comparisons a candidate wins: [N]. Ties go to the first, as everywhere."""
    different_NN = ~np.eye(len(matrix_NN), dtype=bool)
    left, right = (matrix_NN > 0) & different_NN, (matrix_NN.T < 0) & different_NN
    return (left.sum(axis=1) + right.sum(axis=1)).astype(np.float64)


AGGREGATIONS: dict[str, Callable[[np.ndarray], Scores]] = {"max_logits": max_logits, "max_wins": max_wins}


def full_matrices(sizes: Sequence[int], compare: Compare) -> list[np.ndarray]:
    """M [N, N] of each row, its diagonal 0: N(N-1) comparisons a row, all in one call. sizes: candidates of each."""
    pairs = [(row, i, j) for row, n in enumerate(sizes) for i in range(n) for j in range(n) if i != j]
    matrices = [np.zeros((n, n)) for n in sizes]
    # Under ZeRO-3 a forward pass is collective: a worker that has only lone candidates must make one too.
    logits = compare(pairs or [(0, 0, 0)])[: len(pairs)]
    for (row, i, j), logit in zip(pairs, logits, strict=True):
        matrices[row][i, j] = logit
    return matrices


def bubble_scores(sizes: Sequence[int], compare: Compare) -> list[Scores]:
    """The places [N] of each row's candidates after one run of bubble sort: the best one is last, N - 1.

    2(N-1) comparisons a row: the best so far meets the next candidate once on each side. Only the winner is known to be
    the best of anything: do not take the others' order for a ranking.
    """
    places = [list(range(n)) for n in sizes]
    for step in range(max(sizes, default=1) - 1):
        meeting = [row for row, n in enumerate(sizes) if step < n - 1]
        pairs = [(row, places[row][step], places[row][step + 1]) for row in meeting]
        logits = compare([*pairs, *((row, right, left) for row, left, right in pairs)])
        for row, forward, backward in zip(meeting, logits[: len(pairs)], logits[len(pairs) :], strict=True):
            if forward - backward > 0:  # the best so far stays the best, and moves on
                order = places[row]
                order[step], order[step + 1] = order[step + 1], order[step]
    return [np.argsort(np.asarray(order)).astype(np.float64) for order in places]
