"""The paper's seven claims, each held against what was measured: a function of the results, never an opinion.

A difference counts where every seed has its sign and its mean is larger than its spread over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tuning.reproduction.recipe import ALL_CANDIDATES, NO_RANKING, URG
from tuning.reproduction.results import TEXT_METRICS, Figure, Results

Held = Literal["held", "not held", "not testable here"]
HELD: Held = "held"
NOT_HELD: Held = "not held"
UNTESTED: Held = "not testable here"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim, and the figures that say so."""

    claim: str
    verdict: Held
    evidence: str


def difference(ours: Figure | None, theirs: Figure | None) -> Figure | None:
    """Ours minus theirs, seed by seed."""
    if ours is None or theirs is None:
        return None
    return Figure(tuple(a - b for a, b in zip(ours.values, theirs.values, strict=True)))


def is_above(gap: Figure) -> bool:
    """Whether a difference is positive in every seed, and larger than its spread."""
    return min(gap.values) > 0 and gap.mean > gap.spread


def verdicts(results: Results) -> list[Verdict]:
    """Every claim, in the order of the paper."""
    return [test(claim, results) for claim, test in CLAIMS.items()]


def _all_above(claim: str, gaps: dict[str, Figure | None], why_not: str) -> Verdict:
    """Held where every difference that was measured is above 0; untested where none was."""
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    if not known:
        return Verdict(claim, UNTESTED, why_not)
    evidence = ", ".join(f"{name} {'+' if gap.mean > 0 else ''}{gap.text()}" for name, gap in known.items())
    return Verdict(claim, HELD if all(map(is_above, known.values())) else NOT_HELD, evidence)


def _against(ours: str, theirs: str, metrics: tuple[str, ...]) -> Callable[[str, Results], Verdict]:
    def test(claim: str, results: Results) -> Verdict:
        gaps = {m: difference(results.compared(ours, m), results.compared(theirs, m)) for m in metrics}
        return _all_above(claim, gaps, f"{ours} and {theirs} were not compared (table2)")

    return test


def _ablations_hurt(claim: str, results: Results) -> Verdict:
    metric = results.headline
    gaps = {}
    for name in (NO_RANKING, "wo_erm"):
        without = results.variant(name, metric, "urg_random_k" if name == NO_RANKING else URG)
        gaps[f"{metric} over {name}"] = difference(results.variant(URG, metric), without)
    return _all_above(claim, gaps, "the ablations were not run (table3)")


def _noise_costs_half(claim: str, results: Results) -> Verdict:
    metric, parts, holds = results.headline, [], []
    for added in ("12", "11,12"):
        ours, theirs = (results.change(name, added, metric) for name in (URG, "llm_blender"))
        if ours is None or theirs is None:
            return Verdict(claim, UNTESTED, "noise was not measured (table5)")
        parts.append(f"adding {added}: {metric} {ours.text(2)} % against {theirs.text(2)} %")
        holds.append(all(abs(a) <= 0.5 * abs(b) for a, b in zip(ours.values, theirs.values, strict=True)))
    return Verdict(claim, HELD if all(holds) else NOT_HELD, "; ".join(parts))


def _flattens(claim: str, results: Results) -> Verdict:
    recipe, metric = results.recipe, results.dev_metric
    found: dict[float, Figure | None] = {k: results.dev(recipe.with_k(k), metric) for k in recipe.preset.ks}
    found[math.inf] = results.dev(ALL_CANDIDATES, metric)
    known = {k: figure for k, figure in found.items() if figure is not None}
    before, after = [k for k in known if k < 3], [k for k in known if k > 3]
    if 3 not in known or not before or not after:
        return Verdict(claim, UNTESTED, "no runs with K below, at and above 3 (fig3)")
    best = max(after, key=lambda k: known[k].mean)
    first, later = known[3].mean - known[min(before)].mean, known[best].mean - known[3].mean
    named = "all candidates" if best == math.inf else f"K={best}"
    evidence = f"dev {metric}: K={min(before)} to 3 {first:+.4f}, 3 to the best beyond, {named}, {later:+.4f}"
    return Verdict(claim, HELD if first > 0 and later <= max(first / 2, known[3].spread) else NOT_HELD, evidence)


def _ranks_faster(claim: str, results: Results) -> Verdict:
    benchmark = results.benchmark("rankers")
    if benchmark is None:
        return Verdict(claim, UNTESTED, "speed was not measured (table4)")
    names = ("rank_vs_pairranker_full", "rank_vs_pairranker_bubble")
    missing = [f"{name}: {benchmark['missing'].get(name, 'not measured')}" for name in names]
    if any(name not in benchmark["ratios"] for name in names):
        return Verdict(claim, UNTESTED, "; ".join(missing))
    ratios = [float(benchmark["ratios"][name]) for name in names]
    evidence = ", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(names, ratios, strict=True))
    return Verdict(claim, HELD if min(ratios) > 1 else NOT_HELD, evidence)


def _beats_every_model(claim: str, results: Results) -> Verdict:
    metric = results.headline
    document = results.document(f"compare-s{results.recipe.seeds[0]}")
    if document is None:
        return Verdict(claim, UNTESTED, "the systems were not compared (table2)")
    singles = [name for name, kind in document["kinds"].items() if kind == "model"]
    best = max(singles, key=lambda name: document["systems"][name].get(metric, float("-inf")))
    gap = difference(results.compared(URG, metric), results.compared(best, metric))
    return _all_above(claim, {f"{metric} over {best}, the best of {len(singles)}": gap}, "not compared (table2)")


CLAIMS: dict[str, Callable[[str, Results], Verdict]] = {
    "URG-rank beats PairRanker on every metric": _against("urg_rank", "pair_ranker", ("label", *TEXT_METRICS)),
    "URG beats LLM-Blender": _against(URG, "llm_blender", TEXT_METRICS),
    "Each ablation hurts": _ablations_hurt,
    "Noise costs URG about half of what it costs the other fuser": _noise_costs_half,
    "Gains flatten past K=3": _flattens,
    "URG ranks faster than PairRanker": _ranks_faster,
    "The ensemble beats every model in it": _beats_every_model,
}
