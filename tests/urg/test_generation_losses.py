"""Cross-entropy (eq. 10) and the KL over p's top m tokens (eq. 8–9), against loops and their known gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from urg.losses import token_cross_entropy, top_m_kl

B, T, V = 2, 3, 7


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """p's and q's logits [B, T, V], in double precision."""
    return torch.randn(B, T, V, dtype=torch.float64) * 3, torch.randn(B, T, V, dtype=torch.float64) * 3


def slow_kl(p_logits: list[float], q_logits: list[float], m: int, tau: float) -> float:
    """Equations 8 and 9 at one step of the decoder."""
    top = sorted(range(len(p_logits)), key=lambda n: -p_logits[n])[:m]
    total = 0.0
    for n in top:
        p = math.exp(p_logits[n] / tau) / sum(math.exp(p_logits[i] / tau) for i in top)
        q = math.exp(q_logits[n] / tau) / sum(math.exp(q_logits[i] / tau) for i in top)
        total += p * math.log(p / q)
    return total


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("m", [1, 3, V, 32])
def test_kl_is_equations_8_and_9(logits: tuple[Tensor, Tensor], m: int, tau: float) -> None:
    p, q = logits
    ours = top_m_kl(p, q, m, tau)
    slow = [[slow_kl(p[b, t].tolist(), q[b, t].tolist(), m, tau) for t in range(T)] for b in range(B)]
    torch.testing.assert_close(ours, torch.tensor(slow), rtol=1e-5, atol=1e-6)
    assert (ours >= -1e-6).all()


@pytest.mark.parametrize("teacher", ["detached", "joint"])
def test_kl_of_equal_logits_is_zero_and_flat(logits: tuple[Tensor, Tensor], teacher: str) -> None:
    p, _ = logits
    q = (p + 5.0).requires_grad_()  # logits are logits up to a constant
    kl = top_m_kl(p, q, 3, 2.0, teacher)
    kl.sum().backward()
    assert kl.abs().max() < 1e-6
    assert q.grad.abs().max() < 1e-6


def test_kl_with_m_of_at_least_v_is_the_whole_kl(logits: tuple[Tensor, Tensor]) -> None:
    p, q = (x.log_softmax(-1) for x in logits)
    whole = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).float()
    for m in (V, V + 1, 1000):
        torch.testing.assert_close(top_m_kl(*logits, m, 1.0), whole, rtol=1e-5, atol=1e-6)


def test_kl_sees_ps_top_m_tokens_only(logits: tuple[Tensor, Tensor]) -> None:
    p, q = logits
    q.requires_grad_()
    top_m_kl(p, q, 3, 2.0).sum().backward()
    among = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(3).indices, True)
    assert (q.grad[~among] == 0).all()
    assert (q.grad[among] != 0).all()


def test_kl_gradient_of_the_student_is_q_minus_p_over_tau(logits: tuple[Tensor, Tensor]) -> None:
    p, q = logits
    q.requires_grad_()
    top_m_kl(p, q, V, 2.0).sum().backward()
    torch.testing.assert_close(q.grad, ((q / 2).softmax(-1) - (p / 2).softmax(-1)) / 2, rtol=1e-5, atol=1e-6)


def test_kl_teacher_is_detached_or_joint(logits: tuple[Tensor, Tensor]) -> None:
    p, q = (x.requires_grad_() for x in logits)
    top_m_kl(p, q, 3, 2.0).sum().backward()
    student = q.grad.clone()
    assert p.grad is None
    q.grad = None
    top_m_kl(p, q, 3, 2.0, "joint").sum().backward()
    assert p.grad.abs().sum() > 0
    torch.testing.assert_close(q.grad, student, rtol=0, atol=0)


def test_kl_joint_gradient_is_the_numerical_one(logits: tuple[Tensor, Tensor]) -> None:
    """The loss itself is fp32, hence the wide step."""
    p, q = (x.requires_grad_() for x in logits)
    assert torch.autograd.gradcheck(
        lambda a, b: top_m_kl(a, b, 3, 2.0, "joint").double(), (p, q), eps=1e-2, atol=1e-3, rtol=1e-2
    )


def test_kl_temperature_scales_logits(logits: tuple[Tensor, Tensor]) -> None:
    p, q = logits
    torch.testing.assert_close(top_m_kl(2 * p, 2 * q, 3, 2.0), top_m_kl(p, q, 3, 1.0))
    assert (top_m_kl(p, q, 3, 1e4) < 1e-6).all(), "a high temperature makes both even"


def test_kl_is_fp32_for_bf16_logits(logits: tuple[Tensor, Tensor]) -> None:
    p, q = (x.bfloat16() for x in logits)
    kl = top_m_kl(p, q, 3, 2.0)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, top_m_kl(p.double(), q.double(), 3, 2.0), rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_equation_10(logits: tuple[Tensor, Tensor]) -> None:
    z, target = logits[0], torch.randint(0, V, (B, T))
    slow = [
        [-math.log(math.exp(z[b, t, target[b, t]]) / sum(math.exp(z[b, t, n]) for n in range(V))) for t in range(T)]
        for b in range(B)
    ]
    torch.testing.assert_close(token_cross_entropy(z, target), torch.tensor(slow), rtol=1e-5, atol=1e-6)
    assert token_cross_entropy(z.bfloat16(), target).dtype == torch.float32


def test_cross_entropy_gradient_is_softmax_minus_target(logits: tuple[Tensor, Tensor]) -> None:
    z, target = logits[0].requires_grad_(), torch.randint(0, V, (B, T))
    token_cross_entropy(z, target).sum().backward()
    expected = z.softmax(-1) - torch.nn.functional.one_hot(target, V)
    torch.testing.assert_close(z.grad, expected, rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda a: token_cross_entropy(a, target).double(), z, eps=1e-2, atol=1e-3, rtol=1e-2
    )
