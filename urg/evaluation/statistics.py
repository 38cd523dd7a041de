"""How sure a mean and a difference are: bootstrap intervals, paired tests, Holm's correction. All vectorised, seeded.

Systems are paired by row: each resample draws the same rows for all of them. A row without a value (NaN) takes no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UserError
from urg.evaluation.comparison import LOWER_IS_BETTER, METRICS, Comparison
from urg.evaluation.config import ALL_PAIRS, URGS_PAIRS, StatisticsConfig

Floats = NDArray[np.float64]
BLOCK = 4_000_000  # entries of a block of resampled weights: 32 MB


@dataclass(frozen=True)
class Difference:
    """A paired test of one metric between two systems, over the rows where both have a value."""

    first: str
    second: str
    rows: int
    difference: float  # mean of first − mean of second
    p: float  # two-sided
    p_holm: float  # corrected over the pairs that were tested on this metric


@dataclass(frozen=True)
class Statistics:
    """intervals: system → metric → (low, high). tests: metric → differences. method: how both were made."""

    intervals: dict[str, dict[str, tuple[float, float]]]
    tests: dict[str, list[Difference]]
    method: str


def statistics(comparison: Comparison, config: StatisticsConfig, seed: int) -> Statistics:
    """The intervals of every mean, and the tests of the asked metrics. UserError for a pair or metric there is not."""
    asked, which = _pairs(comparison, config)
    for metric in filter(None, config.metrics.split(",")):
        if metric not in METRICS:
            raise UserError(f"statistics.metrics names {metric}, which is no metric; choose from {', '.join(METRICS)}")
    tests = _tests(comparison, config, asked, seed)
    return Statistics(_intervals(comparison, config, seed), tests, _method(config, which))


def _method(config: StatisticsConfig, which: str) -> str:
    return (
        f"intervals: {config.confidence:.0%}, percentiles of {config.resamples} bootstrap resamples of the rows, "
        f"the same for all systems; tests: two-sided paired {config.test}, {config.trials} trials, "
        f"Holm over the pairs that have the metric, of {which}"
    )


def _pairs(comparison: Comparison, config: StatisticsConfig) -> tuple[list[tuple[str, str]], str]:
    """The pairs to test, and in words which they are."""
    if config.pairs not in (URGS_PAIRS, ALL_PAIRS):
        names = [result.name for result in comparison.results]
        return [named_pair(pair, names) for pair in config.pairs.split(",")], "those that were named"
    plain = {r.name: r.kind for r in comparison.results if r.kind != "ceiling" or r.name == "oracle"}
    picks = [name for name, kind in plain.items() if kind not in ("fuser", "closed")]
    others = {"urg_rank": (picks, "each other system that picks a candidate"), "urg": ([*plain], "each other system")}
    ours = {name: family for name, family in others.items() if name in plain}
    if config.pairs == ALL_PAIRS or not ours:
        return list(combinations(plain, 2)), "every two systems"
    pairs = [(name, other) for name, (family, _) in ours.items() for other in family if other != name]
    return pairs, " and of ".join(f"{name} with {told}" for name, (_, told) in ours.items())


def named_pair(pair: str, names: Sequence[str]) -> tuple[str, str]:
    """The two systems that FIRST:SECOND names; a name may hold a colon. UserError where one is not there."""
    parts = pair.strip().split(":")
    for cut in range(1, len(parts)):
        first, second = ":".join(parts[:cut]), ":".join(parts[cut:])
        if first in names and second in names:
            return first, second
    raise UserError(f"statistics.pairs: {pair} does not name two systems that answered; those are {', '.join(names)}")


def sentences(comparison: Comparison, stats: Statistics, level: float = 0.05) -> list[str]:
    """For URG's systems on each tested metric: how many others it is better than for sure, and how many worse than."""
    found = []
    for metric, tests in stats.tests.items():
        for name in ("urg_rank", "urg"):
            mine = [test for test in tests if name in (test.first, test.second)]
            if not mine:
                continue
            up = -1 if metric in LOWER_IS_BETTER else 1
            signs = [up * test.difference * (1 if test.first == name else -1) for test in mine if test.p_holm < level]
            better, worse = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
            shown = f"label {comparison.label}" if metric == "label" else metric
            text = f"{name} on {shown}: better than {better} and worse than {worse} of {len(mine)} systems"
            rest = len(mine) - better - worse
            found.append(f"{text}, {rest} undecided (p < {level}, Holm over {len(tests)} pairs)")
    return found


def _intervals(
    comparison: Comparison, config: StatisticsConfig, seed: int
) -> dict[str, dict[str, tuple[float, float]]]:
    found: dict[str, dict[str, tuple[float, float]]] = {result.name: {} for result in comparison.results}
    columns = [
        (r.name, metric, r.values[metric]) for r in comparison.results for metric in r.values if metric in r.means
    ]
    if not columns or not config.resamples:
        return found
    low_C, high_C = bootstrap_intervals(
        np.stack([values for *_, values in columns], axis=1), config.resamples, config.confidence, seed
    )
    for (name, metric, _), low, high in zip(columns, low_C.tolist(), high_C.tolist(), strict=True):
        found[name][metric] = (low, high)
    return found


def bootstrap_intervals(values_RC: Floats, resamples: int, confidence: float, seed: int) -> tuple[Floats, Floats]:
    """Percentile intervals (low [C], high [C]) of the columns' means over the rows that have a value.

    Source: Efron & Tibshirani 1993. A resample that draws no row with a value is left out.
    """
    has_RC = (~np.isnan(values_RC)).astype(np.float64)
    filled_RC = np.nan_to_num(values_RC)
    means = []
    for weights_SR in resampled(len(values_RC), resamples, seed):
        counts_SC = weights_SR @ has_RC
        means.append(np.where(counts_SC > 0, weights_SR @ filled_RC / np.maximum(counts_SC, 1), np.nan))
    tail = (1 - confidence) / 2
    low_C, high_C = np.nanquantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low_C, high_C


def resampled(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn, [S, R] in blocks: the bootstrap as products of matrices."""
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // max(rows, 1))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield generator.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)


def _tests(
    comparison: Comparison, config: StatisticsConfig, pairs: Sequence[tuple[str, str]], seed: int
) -> dict[str, list[Difference]]:
    tests = {}
    for metric in filter(None, config.metrics.split(",")) if config.trials else ():
        values = {r.name: r.values[metric] for r in comparison.results if metric in r.values and metric in r.means}
        known = [(first, second) for first, second in pairs if first in values and second in values]
        found = paired_tests(values, known, config.test, config.trials, seed)
        if found:
            tests[metric] = found
    return tests


def paired_tests(
    values: dict[str, Floats], pairs: Sequence[tuple[str, str]], method: str, trials: int, seed: int
) -> list[Difference]:
    """The test of each pair that shares a row, Holm-corrected over them. values: system → [R], NaN = no value."""
    apart = [(first, second, values[first] - values[second]) for first, second in pairs]
    shared = [(first, second, d) for first, second, d in apart if not np.isnan(d).all()]
    if not shared:
        return []
    differences_RP = np.stack([d for *_, d in shared], axis=1)
    rows_P = (~np.isnan(differences_RP)).sum(axis=0)
    p_P = (permutation_p if method == "permutation" else bootstrap_p)(differences_RP, trials, seed)
    parts = zip(shared, rows_P.tolist(), p_P.tolist(), holm(p_P).tolist(), strict=True)
    return [Difference(a, b, rows, float(np.nanmean(d)), p, p_holm) for (a, b, d), rows, p, p_holm in parts]


def permutation_p(differences_RP: Floats, trials: int, seed: int) -> Floats:
    """Two-sided p [P] that the mean difference is 0, by flipping the signs of the rows' differences at random.

    p = (1 + trials as extreme) / (1 + trials), which is never 0. Source: Fisher 1935; Phipson & Smyth 2010.
    """
    filled_RP = np.nan_to_num(differences_RP)
    observed_P = np.abs(filled_RP.sum(axis=0))
    slack_P = 1e-9 * np.abs(filled_RP).sum(axis=0)  # rounding must not make the observed one look rarer
    generator = np.random.default_rng(seed)
    extreme_P = np.zeros(filled_RP.shape[1])
    block = max(1, BLOCK // len(filled_RP))
    for start in range(0, trials, block):
        shape = (min(block, trials - start), len(filled_RP))
        signs_SR = generator.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0
        extreme_P += (np.abs(signs_SR @ filled_RP) >= observed_P - slack_P).sum(axis=0)
    return (1 + extreme_P) / (1 + trials)


def bootstrap_p(differences_RP: Floats, trials: int, seed: int) -> Floats:
    """Two-sided p [P] by resampling rows: how often the resampled mean, shifted to 0, is as far off as the observed.

    Source: Efron & Tibshirani 1993, section 16.4; counted as in `permutation_p`.
    """
    has_RP = (~np.isnan(differences_RP)).astype(np.float64)
    filled_RP = np.nan_to_num(differences_RP)
    means_P = filled_RP.sum(axis=0) / has_RP.sum(axis=0)
    extreme_P = np.zeros(filled_RP.shape[1])
    for weights_SR in resampled(len(filled_RP), trials, seed):
        counts_SP = weights_SR @ has_RP
        shifted_SP = weights_SR @ filled_RP / np.maximum(counts_SP, 1) - means_P
        extreme_P += ((np.abs(shifted_SP) >= np.abs(means_P) - 1e-12) & (counts_SP > 0)).sum(axis=0)
    return (1 + extreme_P) / (1 + trials)


def holm(p_P: Floats) -> Floats:
    """Holm's step-down correction of p-values: the family-wise error stays below the level. Source: Holm 1979."""
    order = np.argsort(p_P, kind="stable")
    stepped = np.maximum.accumulate(p_P[order] * np.arange(len(p_P), 0, -1))
    corrected = np.empty_like(p_P)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
