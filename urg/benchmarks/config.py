"""What `python -m urg.benchmark` measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_pipeline.errors import UserError

EXPERIMENTS = ("rank", "rankers", "fuse", "train", "stack", "complexity", "profile", "faults")
SAME_ENCODER = "_same_encoder"
"""What the names of rankers end in that are timed on our own model's encoder."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time, how often, and where to put the result."""

    output: str = "runs/benchmark"
    """Folder for benchmark.json."""
    experiment: Literal["all", "rank", "rankers", "fuse", "train", "stack", "complexity", "profile", "faults"] = "all"
    """One experiment, or all of them: rank (ours and the obvious code), rankers (Tables 4 and 7), fuse, train, stack
    (`urg.train` and a bare loop), complexity (§3.5), profile (where the time of ranking and training goes), faults
    (weak scaling, what safety costs, recovery)."""
    rank_shape: str = "t5-base"
    """Shape for ranking (tiny, t5-small, t5-base, t5-large, t5-xl; random weights), or a model folder."""
    train_shape: str = "t5-small"
    """Shape for training, or a model folder."""
    ranker_shape: Literal["tiny", "t5-small", "deberta-v3-base", "deberta-v3-large"] = "deberta-v3-base"
    """Shape of the other rankers' encoder, random weights: DeBERTa-v3's, t5-small in about the size of that T5's. In
    complexity, PairRanker has the encoder of train_shape, or with tiny a tiny one."""
    new_tokens: int = 64
    """Tokens that fusing writes."""
    stack_steps: int = 160
    """Steps of `urg.train` and of the bare loop."""
    fault_steps: int = 40
    """Steps of each run of `faults`, a multiple of 20."""
    batches: tuple[int, ...] = (8, 16, 32)
    """Rows of a batch in ranking; the ratios are those of the first."""
    n: int = 12
    """Candidates of a row."""
    train_rows: int = 4
    """Rows of a training step."""
    repeats: int = 5
    """How often each variant runs, in turn with the others; medians are reported. At most three times in rankers, stack
    and faults, which take long."""
    threads: int | None = None
    """Torch threads on a CPU; null: one a core."""
    quick: bool = False
    """A first answer within five minutes: small shapes, one batch size, one repeat, where they are not given."""

    def __post_init__(self) -> None:
        if min(self.n, self.train_rows, self.repeats, self.new_tokens, *self.batches) < 1 or not self.batches:
            raise UserError("batches, n, train_rows, repeats and new_tokens must be 1 or more.")
        if self.stack_steps < 16:
            raise UserError(f"stack_steps={self.stack_steps}: give 16 or more, for the first ones do not count.")
        if self.fault_steps < 40 or self.fault_steps % 20:
            raise UserError(f"fault_steps={self.fault_steps}: give a multiple of 20 from 40 on.")
        if self.n <= 4:
            raise UserError(f"n={self.n}: give more than four candidates, for training takes K=3 and a last one.")
