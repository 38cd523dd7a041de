"""What a judge's pairwise verdicts (`cmp_results`) say of the candidate that a system picked.

    gpt_rank                       rank of the pick among the models of its row, 1 = best; lower is better
    beat_vic, beat_oa              % of picks that the judge prefers to Vicuna's, Open Assistant's, or finds "Same good"
    beat_vic_rank, beat_oa_rank    % of picks whose rank is no worse than theirs
    judge_top1, _top2, _top3       % of picks among the judge's best 1, 2, 3

Verdicts become points c[i, j]: 1 for the better, −1 for the worse, 0.5 for both where both are good, −0.5 for both
where both are bad; they add up where a pair was judged twice. Models stand in the order of their sums of c − cᵀ, in
which draws cancel; one that was not compared has the sum 0 (`JudgeConfig` has other rules for both). LLM-Blender's
tables hold both ways to beat: rows of rankers count points above 0, so that picking Vicuna itself does not beat it
(else "Random" could not have 38.75); the oracle's row has 100, which only ranks give.

A row without verdicts has no value. Verdicts that cannot be used are counted by reason, never guessed.
Source: Jiang et al. 2023 and their published scoring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from urg.evaluation.config import JudgeConfig

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.systems.protocol import Answer

Floats = NDArray[np.float64]

JUDGE_METRICS = (
    "gpt_rank", "beat_vic", "beat_oa", "beat_vic_rank", "beat_oa_rank", "judge_top1", "judge_top2", "judge_top3",
)  # fmt: skip
POINTS = {"A is better": (1.0, -1.0), "B is better": (-1.0, 1.0), "Same good": (0.5, 0.5), "Same bad": (-0.5, -0.5)}

NO_VERDICTS = "no row has verdicts (cmp_results)"
NOT_JUDGED = "the judge did not compare the pick"
NO_REFERENCE_MODEL = "the judge did not compare the pick with {model}; name the model by --judge.{option}"
ITSELF = "a single model does not beat itself"
NO_PAIR = "the key names no pair of models"
UNKNOWN_MODEL = "names a model that is not among the row's candidates"
UNKNOWN_VERDICT = "is none of " + ", ".join(POINTS)


@dataclass(frozen=True)
class Verdicts:
    """One row's verdicts as points c [N, N], NaN = two were not compared; and ranks [N], NaN = left out."""

    points_NN: Floats
    ranks_N: Floats


@dataclass(frozen=True)
class Judged:
    """The verdicts of all rows, None where a row has none, and how many could not be used, by reason."""

    rows: tuple[Verdicts | None, ...]
    ignored: dict[str, int]
    config: JudgeConfig = field(default_factory=JudgeConfig)

    @property
    def rule(self) -> str:
        """How the models of a row are put in order, as a phrase."""
        sums = "points less the others' against it" if self.config.scoring == "margin" else "points"
        rest = "stands at 0" if self.config.unjudged == "zero" else "is left out"
        return f"order of a row's models by the sum of each one's {sums}; a model that was compared with none {rest}"

    @property
    def count(self) -> int:
        """Rows with at least one usable verdict."""
        return sum(row is not None for row in self.rows)


def read_verdicts(rows: Sequence[TokenizedExample], config: JudgeConfig | None = None) -> Judged:
    """The verdicts of every row."""
    ignored: Counter[str] = Counter()
    config = config or JudgeConfig()
    found = tuple(_row_verdicts(row.models, row.cmp_results, config, ignored) for row in rows)
    return Judged(found, dict(ignored), config)


def _row_verdicts(
    models: Sequence[str], comparisons: Mapping[str, str] | None, config: JudgeConfig, ignored: Counter[str]
) -> Verdicts | None:
    points_NN = np.full((len(models), len(models)), np.nan)
    for key, verdict in (comparisons or {}).items():
        pair = _pair(key, models)
        if isinstance(pair, str) or verdict not in POINTS:
            ignored[pair if isinstance(pair, str) else UNKNOWN_VERDICT] += 1
            continue
        for (i, j), points in zip((pair, pair[::-1]), POINTS[verdict], strict=True):
            points_NN[i, j] = points + np.nan_to_num(points_NN[i, j])
    if np.isnan(points_NN).all():
        return None
    return Verdicts(points_NN, ranks(points_NN, config))


def _pair(key: str, models: Sequence[str]) -> tuple[int, int] | str:
    """The indices of the two models that `key` names, or why it cannot be used. A model's name may hold a comma."""
    parts = key.split(",")
    for cut in range(1, len(parts)):
        first, second = ",".join(parts[:cut]).strip(), ",".join(parts[cut:]).strip()
        if first in models and second in models and first != second:
            return models.index(first), models.index(second)
    return UNKNOWN_MODEL if len(parts) == 2 and parts[0].strip() != parts[1].strip() else NO_PAIR


def ranks(points_NN: Floats, config: JudgeConfig) -> Floats:
    """Rank [N] of each model by its sum, 1 = best; equal sums share the better rank; NaN = left out."""
    shown = points_NN - points_NN.T if config.scoring == "margin" else points_NN
    standing = ~np.isnan(points_NN).all(axis=1) | (config.unjudged == "zero")
    sums = np.where(standing, np.nansum(shown, axis=1), -np.inf)
    better = (sums[None, :] > sums[:, None]).sum(axis=1)
    return np.where(standing, 1.0 + better, np.nan)


def judge_metrics(
    answers: Sequence[Answer | None],
    rows: Sequence[TokenizedExample],
    judged: Judged,
    config: JudgeConfig,
    single: bool = False,
) -> tuple[dict[str, Floats], dict[str, dict[str, int]]]:
    """metric → [R] of what was picked, NaN = no value; and metric → reason → rows whose pick has none.

    single: the system is a single model, for which beating itself is not defined.
    """
    values = {metric: np.full(len(rows), np.nan) for metric in JUDGE_METRICS}
    reasons: dict[str, Counter[str]] = {metric: Counter() for metric in JUDGE_METRICS}
    for index, (answer, row, verdicts) in enumerate(zip(answers, rows, judged.rows, strict=True)):
        if answer is None or answer.picked is None or verdicts is None:
            continue
        for metric, value in _pick_values(answer.picked, row.models, verdicts, config).items():
            if single and row.models[answer.picked] == _compared_with(metric, config):
                value = ITSELF
            if isinstance(value, str):
                reasons[metric][value] += 1
            else:
                values[metric][index] = value
    return values, {metric: dict(count) for metric, count in reasons.items()}


def _compared_with(metric: str, config: JudgeConfig) -> str | None:
    """The model that a metric compares the pick with."""
    names = {"beat_vic": config.vicuna, "beat_oa": config.open_assistant}
    return names.get(metric.removesuffix("_rank"))


def _pick_values(picked: int, models: Sequence[str], verdicts: Verdicts, config: JudgeConfig) -> dict[str, float | str]:
    """metric → value of one pick, or why it has none."""
    rank = float(verdicts.ranks_N[picked])
    if np.isnan(rank):
        return dict.fromkeys(JUDGE_METRICS, NOT_JUDGED)
    values: dict[str, float | str] = {f"judge_top{k}": 100.0 * (rank <= k) for k in (1, 2, 3)}
    values["gpt_rank"] = rank
    for short, option, model in (("vic", "vicuna", config.vicuna), ("oa", "open_assistant", config.open_assistant)):
        reason = NO_REFERENCE_MODEL.format(model=model, option=option)
        reference = models.index(model) if model in models else None
        if reference is None or np.isnan(verdicts.ranks_N[reference]):
            values |= {f"beat_{short}": reason, f"beat_{short}_rank": reason}
            continue
        points = 0.0 if reference == picked else float(verdicts.points_NN[picked, reference])
        values[f"beat_{short}"] = reason if np.isnan(points) else 100.0 * (points > 0)
        values[f"beat_{short}_rank"] = 100.0 * (rank <= verdicts.ranks_N[reference])
    return values
