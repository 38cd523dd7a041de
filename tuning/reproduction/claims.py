"""The paper's seven claims, each held against what was measured: a function of the results, never an opinion.

Each has a verdict by the preset's own recipe and, where this is another, by the paper's. The rules are in RULE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tuning.reproduction.recipe import ALL_CANDIDATES, NO_RANKING, PAPERS_RANKING, URG, Recipe
from tuning.reproduction.results import TEXT_METRICS, Figure, Results
from tuning.reproduction.sureness import SURE, tested

Held = Literal["held", "not held", "not testable here"]
HELD: Held = "held"
NOT_HELD: Held = "not held"
UNTESTED: Held = "not testable here"
Found = tuple[Held, str]
"""A verdict and its evidence."""
Pair = tuple[str, str, str]
"""A metric, a system of ours, and the one that it is held against."""
ABOUT_HALF = 0.65
"""The most that "almost half" (§5.4) is taken to mean. The paper's own Table 5 has 0.38 to 0.62."""
ONE_SEED = "one seed, and no paired test"
RULE = (
    "Over several seeds a difference counts where each has its sign and its mean is larger than its spread; over "
    "three seeds that is t > 1.73 in a paired t-test, one-sided p < 0.12: a lead, no proof. Of one seed it counts "
    f"where the paired test over the rows has p < {SURE:g} after Holm's correction over the pairs that Table 2 names, "
    "which knows nothing of another training. About half: noise costs URG less, and at most "
    f"{ABOUT_HALF:g} of what the other fuser loses. Flattens: "
    "what is gained up to K=3 counts, and no K beyond gains more than half of it."
)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim by one recipe, and the figures that say so."""

    claim: str
    recipe: str
    verdict: Held
    evidence: str


def difference(ours: Figure | None, theirs: Figure | None) -> Figure | None:
    """Ours minus theirs, seed by seed."""
    return None if ours is None or theirs is None else ours - theirs


def is_above(gap: Figure) -> bool:
    """Whether a difference is positive in every one of several seeds, and larger than its spread: t > √seeds."""
    return len(gap.values) > 1 and min(gap.values) > 0 and gap.mean > gap.spread


def verdicts(results: Results) -> list[Verdict]:
    """Every claim, in the order of the paper, by each recipe."""
    recipes = dict(_recipes(results.recipe))
    return [
        Verdict(claim, told, *(test(results, variant) if variant else (UNTESTED, "the preset trains no such recipe")))
        for claim, test in CLAIMS.items()
        for told, variant in recipes.items()
    ]


def _recipes(recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    """What each recipe is called, and the variant that it trains."""
    if recipe.papers_variant == URG:
        yield f"the paper's, which is the preset's: {PAPERS_RANKING}", URG
    else:
        yield f"the preset's: {recipe.ranking(URG)}", URG
        yield f"the paper's: {PAPERS_RANKING}", recipe.papers_variant


def _beats(results: Results, variant: str, pairs: Mapping[str, Pair], note: str = "") -> Found:
    """Held where ours is above theirs in every pair. pairs: name → pair. note: ends the evidence."""
    if len(results.recipe.seeds) == 1:
        return _beats_by_rows(results, variant, pairs, note)
    steps = results.recipe.compared() + (results.recipe.evaluated(variant) if variant != URG else [])
    if why_not := results.why_not(steps):
        return UNTESTED, why_not
    gaps = {}
    for name, (metric, ours, theirs) in pairs.items():
        own = results.compared(ours, metric) if variant == URG else results.variant(variant, metric, ours)
        gaps[name] = difference(own, results.compared(theirs, metric))
    verdict, evidence = _all_above(gaps)
    return verdict, evidence + note


def _beats_by_rows(results: Results, variant: str, pairs: Mapping[str, Pair], note: str) -> Found:
    """The same by the paired tests on the rows of the only seed."""
    step = results.recipe.all_rows
    document = results.document(step)
    if document is None:
        return UNTESTED, str(results.why_not([step]))
    if variant != URG:
        return UNTESTED, f"{ONE_SEED} between two evaluations"
    found = {name: tested(document, metric).get((ours, theirs)) for name, (metric, ours, theirs) in pairs.items()}
    tests = {name: test for name, test in found.items() if test is not None}
    evidence = ", ".join(f"{name} {gap:+.4f} (p {p:.2g})" for name, (gap, p) in tests.items()) + note
    if missing := [name for name in pairs if name not in tests]:
        return UNTESTED, f"{ONE_SEED} of {', '.join(missing)} in {step}{': ' if tests else ''}{evidence}"
    return HELD if all(gap > 0 and p < SURE for gap, p in tests.values()) else NOT_HELD, f"one seed: {evidence}"


def _all_above(gaps: Mapping[str, Figure | None]) -> Found:
    """Held where every difference counts; untested where one is missing."""
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    if missing := [name for name in gaps if name not in known]:
        return UNTESTED, f"not every seed has a figure of {', '.join(missing)}"
    return HELD if all(map(is_above, known.values())) else NOT_HELD, ", ".join(map(_told, known, known.values()))


def _told(name: str, gap: Figure) -> str:
    return f"{name} {'+' if gap.mean > 0 else ''}{gap.text()}"


def _against(ours: str, theirs: str, metrics: tuple[str, ...]) -> Callable[[Results, str], Found]:
    def test(results: Results, variant: str) -> Found:
        unmeasured = results.without_model(metrics)
        note = f"; not measured, for no model was named: {', '.join(unmeasured)}" if unmeasured else ""
        return _beats(results, variant, {m: (m, ours, theirs) for m in metrics if m not in unmeasured}, note)

    return test


def _beats_every_model(results: Results, variant: str) -> Found:
    metric, step = results.headline, results.recipe.compared()[0]
    document = results.document(step)
    if document is None:
        return UNTESTED, str(results.why_not([step]))
    singles = [name for name, kind in document["kinds"].items() if kind == "model"]
    known = {name: document["systems"][name][metric] for name in singles if metric in document["systems"][name]}
    if not known:
        return UNTESTED, f"no single model has {metric} in {step}"
    best = max(known, key=lambda name: float(known[name]))
    return _beats(results, variant, {f"{metric} over {best}, the best of {len(known)}": (metric, URG, best)})


def _of_presets_alone(what: str, test: Callable[[Results], Found]) -> Callable[[Results, str], Found]:
    """A claim whose runs only the preset's recipe has. what: was not done with another."""
    return lambda results, variant: test(results) if variant == URG else (UNTESTED, f"{what} with this recipe")


def _ablations_hurt(results: Results) -> Found:
    recipe, metric, gaps = results.recipe, results.headline, {}
    names = (NO_RANKING, "wo_erm")
    if why_not := results.why_not([step for name in (URG, *names) for step in recipe.evaluated(name)]):
        return UNTESTED, why_not
    for name in names:
        without = results.variant(name, metric, "urg_random_k" if name == NO_RANKING else URG)
        gaps[f"{metric} over {name}"] = difference(results.variant(URG, metric), without)
    verdict, evidence = _all_above(gaps)
    return (verdict, evidence) if len(recipe.seeds) > 1 else (UNTESTED, f"{ONE_SEED} of two trainings: {evidence}")


def cost(change: Figure) -> Figure:
    """What noise costs in percent, seed by seed: Δ% without its sign, and 0 where it is a gain."""
    return Figure(tuple(max(0.0, -value) for value in change.values))


def ratio(part: Figure, whole: Figure) -> Figure:
    """Ratio of the means, with its spread over the seeds (linearised, paired: Cochran 1977, §6.3). The mean of `whole`
    must not be 0."""
    share = part.mean / whole.mean
    pairs = zip(part.values, whole.values, strict=True)
    return Figure(tuple(share + (a - share * b) / whole.mean for a, b in pairs))


def _is_part(part: Figure, whole: Figure, share: float) -> bool:
    """Whether `part` is less than `whole`, as differences count, and its mean at most this share of whole's."""
    return is_above(whole - part) and part.mean <= share * whole.mean


def _noise_costs_half(results: Results) -> Found:
    metric, parts, holds = results.headline, [], []
    if why_not := results.why_not([f"noise-s{seed}" for seed in results.recipe.seeds]):
        return UNTESTED, why_not
    for added in ("12", "11,12"):
        changes = [results.change(name, added, metric) for name in (URG, "llm_blender")]
        ours, theirs = (None if change is None else cost(change) for change in changes)
        if ours is None or theirs is None:
            return UNTESTED, f"not every seed has {metric} of both fusers with {added} added"
        if theirs.mean == 0:
            return UNTESTED, f"adding {added} cost the other fuser no {metric}"
        told = f"{ours.text(2)} % of {metric} against {theirs.text(2)} %"
        parts.append(f"adding {added} costs {told}, {ratio(ours, theirs).text(2)} of it")
        holds.append(_is_part(ours, theirs, ABOUT_HALF))
    evidence = "; ".join(parts)
    if len(results.recipe.seeds) == 1:
        return UNTESTED, f"{ONE_SEED} of two fusers' losses: {evidence}"
    return HELD if all(holds) else NOT_HELD, evidence


def _flattens(results: Results) -> Found:
    recipe, metric = results.recipe, results.dev_metric
    variants: dict[float, str] = {k: recipe.with_k(k) for k in recipe.preset.ks} | {math.inf: ALL_CANDIDATES}
    if min(variants) >= 3 or 3 not in variants:
        return UNTESTED, f"the preset trains no K=3, or none below: {', '.join(map(str, recipe.preset.ks))}"
    if why_not := results.why_not([f"train-{recipe.run(name, s)}" for name in variants.values() for s in recipe.seeds]):
        return UNTESTED, why_not
    found = {k: figure for k, name in variants.items() if (figure := results.dev(name, metric)) is not None}
    if missing := [name for k, name in variants.items() if k not in found]:
        return UNTESTED, f"no {metric} on the dev split was recorded by {', '.join(missing)}"
    best = max((k for k in found if k > 3), key=lambda k: found[k].mean)
    first, later = found[3] - found[min(found)], found[best] - found[3]
    named = "all candidates" if best == math.inf else f"K={best}"
    evidence = (
        f"dev {metric}: {_told(f'K={min(found)} to 3', first)}; {_told(f'3 to {named}, the best beyond,', later)}"
    )
    if len(recipe.seeds) == 1:
        return UNTESTED, f"{ONE_SEED} of two trainings: {evidence}"
    if not is_above(first):
        return NOT_HELD, f"no gain up to K=3 that counts: {evidence}"
    return HELD if _is_part(later, first, 0.5) else NOT_HELD, evidence


def _ranks_faster(results: Results, variant: str) -> Found:
    benchmark = results.benchmark("rankers")
    if benchmark is None:
        return UNTESTED, str(results.why_not(["benchmark-rankers"]))
    names = ("rank_vs_pairranker_full", "rank_vs_pairranker_bubble")
    missing = [f"{name}: {benchmark['missing'].get(name, 'not measured')}" for name in names]
    if any(name not in benchmark["ratios"] for name in names):
        return UNTESTED, "; ".join(missing)
    ratios = [float(benchmark["ratios"][name]) for name in names]
    evidence = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, ratios, strict=True))
    return HELD if min(ratios) > 1 else NOT_HELD, f"{evidence}, with random weights: no recipe changes it"


CLAIMS: dict[str, Callable[[Results, str], Found]] = {
    "URG-rank beats PairRanker on every metric": _against("urg_rank", "pair_ranker", ("label", *TEXT_METRICS)),
    "URG beats LLM-Blender": _against(URG, "llm_blender", TEXT_METRICS),
    "Each ablation hurts": _of_presets_alone("no ablations were trained", _ablations_hurt),
    "Noise costs URG about half of what it costs the other fuser": _of_presets_alone(
        "noise was not measured", _noise_costs_half
    ),
    "Gains flatten past K=3": _of_presets_alone("no other K was trained", _flattens),
    "URG ranks faster than PairRanker": _ranks_faster,
    "The ensemble beats every model in it": _beats_every_model,
}
