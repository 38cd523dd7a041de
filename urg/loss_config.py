"""The settings of URG's loss: light, as everything in urg.config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from urg.checks import require


@dataclass(frozen=True)
class LossConfig:
    """γ·L_rank + β·L_kl + CE(top K) + CE(top K and last): eq. 11, and the options that the paper leaves open."""

    gamma: float = 5.0
    """γ, the weight of the ranking loss. It does not carry over from one `rank_scale` to another."""
    beta: float = 2.0
    """β, the weight of the KL term. 0 switches it off."""
    m: int = 32
    """Tokens of the vocabulary that the KL term compares."""
    tau: float = 2.0
    """τ, the temperature of the KL term."""
    second_ce: bool = True
    """Also train on the K candidates plus the last one (eq. 10, second sum)."""
    generation: bool = True
    """Train to write at all. False: the ranking loss alone; nothing is decoded, and the model ranks but cannot fuse."""
    rank_loss: Literal["hinge", "margin", "logistic", "listnet", "listmle"] = "hinge"
    """The ranking loss; `hinge` is the paper's."""
    rank_scale: Literal["attention", "mass", "unit", "log", "log_mass"] = "attention"
    """What the ranking loss sees of the scores s, each the attention a token of a candidate with L of the row's ΣL
    tokens: s itself, as in the paper (`attention`), s·L (`mass`), s·ΣL (`unit`), log of s·ΣL (`log`), log of s·L
    (`log_mass`: attention that falls on some tokens of each candidate, whatever its length, gives no preference for
    short ones). Ranking itself goes by s."""
    quality_scale: Literal["minmax", "rank"] = "minmax"
    """`listnet`: what its target is made of, 0 to 1 within a row: the labels themselves (`minmax`), or their ranks at
    equal distances, equals sharing one (`rank`), where the labels of most rows lie close together or far apart by
    turns, as a judge's probabilities do. The other losses see the order of the labels alone."""
    temperature: float = 0.1
    """`listnet`: the target is softmax(quality / temperature). Low: the best alone counts; high: all nearly alike."""
    kl_teacher: Literal["detached", "joint"] = "detached"
    """Whether the KL term's gradient stops at p."""
    teacher_dropout: bool = True
    """Whether the KL term's p is decoded under dropout, by the pass that the first CE trains. False: by another pass,
    with the decoder's dropout off and without a gradient, which costs a few per cent of a step's time. The encoder's
    stays on: what it encoded is read by p and q alike, while the masks of the decoder are other ones for each."""
    kl_tau_squared: bool = False
    """Multiply the KL term by τ², as in distillation."""
    reduction: Literal["mean", "sum"] = "mean"
    """CE and KL: the mean over the target tokens of the global batch, or the paper's literal sum (then a mean over
    queries)."""
    selection: Literal["predicted", "gold", "schedule", "random"] = "predicted"
    """How training picks the K candidates and the last: by predicted score, by label, from gold to predicted over
    `schedule_steps`, or at random (the ablation `w/o ranking`)."""
    schedule_steps: int = 1000
    """Steps over which `selection=schedule` moves from gold to predicted."""

    def __post_init__(self) -> None:
        for key in ("gamma", "beta"):
            require(getattr(self, key) >= 0, f"loss.{key}", getattr(self, key), "must be 0 (off) or positive.")
        require(self.m >= 1, "loss.m", self.m, "must compare at least one token.")
        require(self.tau > 0, "loss.tau", self.tau, "must be positive.")
        warm = 0 < self.temperature < float("inf")
        require(warm, "loss.temperature", self.temperature, "must be positive and finite.")
        gradient = self.kl_teacher == "joint" and not self.teacher_dropout
        require(not gradient, "loss.teacher_dropout", False, "no gradient passes: needs loss.kl_teacher detached.")
        require(self.schedule_steps >= 1, "loss.schedule_steps", self.schedule_steps, "must be at least 1.")
        learns = self.generation or self.gamma > 0
        require(learns, "loss.generation", self.generation, "with loss.gamma 0 there is nothing left to learn.")
