"""The objective's counts, switches and selection; eq. 11 itself is in test_equation_11.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from urg.batching import Batch
from urg.layout import Layout
from urg.loss_config import LossConfig
from urg.losses import rank_loss, top_m_kl
from urg.model import Output
from urg.objective import Counts, guide, loss_terms, needs_last, needs_teacher, token_losses, total_loss


def _batch(quality: list[list[float]], weights: list[float]) -> Batch:
    rows, n = len(quality), len(quality[0])
    layout = Layout.of([[2] * n for _ in range(rows)])
    target = torch.full((rows, 3), 2)
    places = torch.arange(rows * 3)[torch.tensor(weights).bool().repeat_interleave(3)]
    tokens = torch.zeros(rows * n * 2, dtype=torch.int64)
    return Batch(tokens, layout, target, places, torch.tensor(quality), torch.tensor(weights))


def _output(rows: int, n: int, with_last: bool = True) -> Output:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn((2, rows * 3, 7), generator=generator)  # the head changes nothing
    scores = torch.rand((rows, n), generator=generator)
    scores = scores / scores.sum(1, keepdim=True) / 2
    return Output(scores, p, q if with_last else None, torch.ones(rows).bool(), torch.nn.Identity())


def _row(output: Output, row: int) -> Output:
    own, tokens = slice(row, row + 1), slice(3 * row, 3 * row + 3)
    states = (output.p_states_PD[tokens], output.q_states_PD[tokens])
    return Output(output.scores_BN[own], *states, output.has_last_B[own], output.head)


def test_counts_leave_out_rows_without_a_last_candidate() -> None:
    tokens, candidates = np.array([4, 6, 0]), np.array([5, 3, 12])
    assert Counts.of(tokens, candidates, k=3, reduction="mean") == Counts(3, 10, 4)
    assert Counts.of(tokens, candidates, k=3, reduction="sum") == Counts(3, 3, 3)
    assert Counts.of(np.array([0]), np.array([1]), k=3, reduction="mean") == Counts(1, 1, 1)


def test_micro_batches_add_up_to_the_whole() -> None:
    quality = [[0.1, 0.9, 0.5], [0.3, 0.2, 0.8]]
    whole, output, counts = _batch(quality, [1.0, 1.0]), _output(2, 3), Counts(2, 6, 6)
    together = loss_terms(output, whole, LossConfig(), counts)
    parts = []
    for row in range(2):
        parts.append(loss_terms(_row(output, row), _batch([quality[row]], [1.0]), LossConfig(), counts))
    for name, term in together.items():
        torch.testing.assert_close(term, parts[0][name] + parts[1][name])


def test_a_filler_row_changes_nothing() -> None:
    config, counts = LossConfig(), Counts(1, 3, 3)
    nan = float("nan")
    output = _output(2, 3)
    filler = dataclasses.replace(output, p_states_PD=output.p_states_PD[:3], q_states_PD=output.q_states_PD[:3])
    filled = loss_terms(filler, _batch([[0.1, 0.9, 0.5], [nan] * 3], [1.0, 0.0]), config, counts)
    alone = loss_terms(_row(output, 0), _batch([[0.1, 0.9, 0.5]], [1.0]), config, counts)
    for name, term in alone.items():
        torch.testing.assert_close(term, filled[name])


@pytest.mark.parametrize(
    ("config", "terms"),
    [
        (LossConfig(), {"ce", "rank", "ce_last", "kl"}),
        (LossConfig(gamma=0), {"ce", "ce_last", "kl"}),
        (LossConfig(beta=0), {"ce", "rank", "ce_last"}),
        (LossConfig(second_ce=False), {"ce", "rank", "kl"}),
        (LossConfig(beta=0, second_ce=False), {"ce", "rank"}),
        (LossConfig(generation=False), {"rank"}),
    ],
)
def test_what_is_switched_off_is_left_out(config: LossConfig, terms: set[str]) -> None:
    output = _output(1, 3, with_last=needs_last(config))
    output = output if config.generation else dataclasses.replace(output, p_states_PD=None)
    found = loss_terms(output, _batch([[0.1, 0.9, 0.5]], [1.0]), config, Counts(1, 3, 3))
    assert set(found) == terms
    weights = {"rank": config.gamma, "kl": config.beta}
    expected = sum(weights.get(name, 1.0) * float(term) for name, term in found.items())
    assert float(total_loss(found, config)) == pytest.approx(expected, rel=1e-6)


def test_the_target_of_the_ranking_loss_is_as_configured() -> None:
    batch, output = _batch([[1e-5, 0.9, 2e-5]], [1.0]), _output(1, 3)
    for own in ({}, {"quality_scale": "rank"}, {"temperature": 1.0}):
        config = LossConfig(rank_loss="listnet", rank_scale="log_mass", **own)  # type: ignore[arg-type]
        found = loss_terms(output, batch, config, Counts(1, 3, 3))["rank"]
        arguments = (output.scores_BN, batch.layout.tokens_BN, batch.quality_BN, "listnet", "log_mass")
        assert float(found) == float(rank_loss(*arguments, **own)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_a_teacher_of_its_own_is_the_kls_alone_and_gets_no_gradient(at_once: int) -> None:
    batch, output, config = _batch([[0.1, 0.9, 0.5]] * 2, [1.0, 1.0]), _output(2, 3), LossConfig(m=4)
    teacher = torch.randn((6, 7), generator=torch.Generator().manual_seed(1), requires_grad=True)
    q = output.q_states_PD.clone().requires_grad_()
    own = dataclasses.replace(output, q_states_PD=q, teacher_states_PD=teacher, tokens_at_once=at_once)
    found, without = (token_losses(each, batch.real_targets, config) for each in (own, output))
    torch.testing.assert_close(found["kl"], top_m_kl(teacher, q, 4, config.tau))
    assert not torch.allclose(found["kl"], without["kl"], atol=1e-3)
    for name in ("ce", "ce_last"):
        torch.testing.assert_close(found[name], without[name])
    found["kl"].sum().backward()
    assert teacher.grad is None
    assert q.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"teacher_dropout": False}, True),
        ({"teacher_dropout": False, "second_ce": False}, True),
        ({"teacher_dropout": False, "beta": 0.0}, False),
        ({"teacher_dropout": False, "generation": False}, False),
    ],
)
def test_a_teacher_of_its_own_is_decoded_for_a_kl_alone(settings: dict[str, Any], needed: bool) -> None:
    assert needs_teacher(LossConfig(**settings)) == needed


def test_tau_squared_multiplies_the_kl_alone() -> None:
    batch, output, counts = _batch([[0.1, 0.9, 0.5]], [1.0]), _output(1, 3), Counts(1, 3, 3)
    plain = loss_terms(output, batch, LossConfig(tau=3.0), counts)
    scaled = loss_terms(output, batch, LossConfig(tau=3.0, kl_tau_squared=True), counts)
    torch.testing.assert_close(scaled["kl"], 9 * plain["kl"])
    torch.testing.assert_close(scaled["ce"], plain["ce"])


def test_selection_follows_its_setting() -> None:
    nan, rows = float("nan"), np.array([7, 9])
    batch = _batch([[0.2, nan, 0.9], [nan, nan, nan]], [1.0, 1.0])
    assert guide(batch, LossConfig(), 0, 1, rows) is None
    gold = guide(batch, LossConfig(selection="gold"), 0, 1, rows)
    assert gold is not None
    assert gold[0].tolist() == pytest.approx([0.2, float("-inf"), 0.9])
    assert gold[1].isnan().all(), "a row without a label goes by prediction"
    schedule = LossConfig(selection="schedule", schedule_steps=10)
    first, last = (guide(batch, schedule, 0, step, rows) for step in (0, 10))
    assert first is not None
    assert last is not None
    assert not first[0].isnan().any()
    assert last.isnan().all()


def test_random_selection_depends_on_seed_step_and_row_alone() -> None:
    config, batch = LossConfig(selection="random"), _batch([[0.1, 0.2, 0.3]] * 2, [1.0, 1.0])
    both = guide(batch, config, 0, 5, np.array([3, 8]))
    swapped = guide(batch, config, 0, 5, np.array([8, 3]))
    later = guide(batch, config, 0, 6, np.array([3, 8]))
    assert both is not None
    assert swapped is not None
    assert later is not None
    assert torch.equal(both, swapped.flip(0))
    assert not torch.equal(both, later)
