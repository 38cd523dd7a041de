"""The settings of the systems beside URG that `urg.train` also trains: light, as everything in urg.config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from urg.checks import require

SystemName = Literal["urg", "pair_ranker", "simcls", "summareranker", "gen_fuser"]
BY_LABEL, RANDOM = "label", "random"
"""What may be asked of `fuser.choose` but a system."""


@dataclass(frozen=True)
class RankerConfig:
    """Rankers with an encoder: PairRanker, SimCLS, SummaReranker. The encoder is `model.base`, or random weights of the
    shape `model.scratch` with the shards' tokenizer; dropout and chunks are those of `model` too."""

    source_tokens: int = 128
    """Tokens kept of instruction and input, special tokens counted."""
    candidate_tokens: int = 128
    """Tokens kept of one candidate, special tokens counted; see `fills_up`."""
    fills_up: bool = False
    """PairRanker: the two candidates share what a short source leaves of `source_tokens`, so that they keep more than
    `candidate_tokens` where the question is short. So was the published one trained (there by the longest source of a
    batch, here by each row's), and the preset `pair-ranker` has it. False: each keeps to `candidate_tokens`."""
    pairs: int = 5
    """PairRanker: pairs of candidates drawn from a row a step; 1 or more."""
    tasks: list[str] | None = None
    """PairRanker, SummaReranker: the scores that the head learns, an output each. Null: `data.label` alone."""
    pooling: Literal["first", "mean"] = "first"
    """SimCLS, SummaReranker: a text's state is that of its first token, as in both papers and our presets of them, or
    the mean over its tokens. With a sentence encoder such as MiniLM as `model.base` give `mean`: it is trained for
    that."""
    inference: Literal["full", "bubble"] = "full"
    """PairRanker on the dev split: all N(N-1) ordered pairs, or 2(N-1) of them."""
    aggregation: Literal["max_logits", "max_wins"] = "max_logits"
    """PairRanker with all pairs: how the comparisons make a score."""

    def __post_init__(self) -> None:
        for key, least in (("source_tokens", 4), ("candidate_tokens", 4), ("pairs", 1)):
            require(getattr(self, key) >= least, f"ranker.{key}", getattr(self, key), f"must be at least {least}.")
        distinct = self.tasks is None or 0 < len(self.tasks) == len(set(self.tasks))
        require(distinct, "ranker.tasks", self.tasks, "name one or more different scores, or null for data.label.")


@dataclass(frozen=True)
class FuserConfig:
    """GenFuser, a sequence-to-sequence model on one text that holds the `model.k` best candidates. The model is
    `model.base`, or random weights of the shape `model.scratch` with the shards' tokenizer."""

    source_tokens: int = 1024
    """Tokens kept of the whole input: instruction, input, candidates, request."""
    candidate_tokens: int = 128
    """Tokens kept of one candidate."""
    target_tokens: int = 128
    """Tokens kept of the reference, its end counted; the longest fused text by default."""
    choose: str = BY_LABEL
    """Which K candidates it reads in training and on the dev split. `label`: the best by `data.label`; in use, where a
    ranker chooses, it meets others. `random`: drawn by row, the same in every epoch. Else a system that has scores in
    `predictions`, such as pair_ranker: the best by these, as in use."""
    predictions: list[str] | None = None
    """Files predictions.parquet of `urg.evaluate`, which together hold every row that the run reads: of `--split train`
    and of `--split dev`. A ranker is surer of rows that it was trained on than in use: evaluate those by `--folds`."""

    def __post_init__(self) -> None:
        for key, least in (("source_tokens", 32), ("candidate_tokens", 1), ("target_tokens", 2)):
            require(getattr(self, key) >= least, f"fuser.{key}", getattr(self, key), f"must be at least {least}.")
        if bool(self.predictions) == (self.choose in (BY_LABEL, RANDOM)):
            mend = "name files with a system's scores, and the system by fuser.choose; or neither."
            raise ValueError(f"fuser.predictions={self.predictions} with fuser.choose={self.choose!r}: {mend}")
