"""Table 2 of one seed on every row of the test split: intervals over the rows, and whether differences are sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from urg.evaluation.sheet import NONE, Group, Line, Sheet

RANKERS = ("simcls", "summareranker", "pair_ranker", "pair_ranker_bubble")
FUSERS = ("llm_blender", "simcls_gen", "summareranker_gen")
SURE = 0.05
"""p, after Holm's correction over the pairs that were tested, below which a difference is sure. Which these are, the
evaluation says (`statistics` in metrics.json): by default those of URG's two systems."""


def all_rows(document: Mapping[str, Any], metrics: Sequence[str]) -> list[Sheet]:
    """Every system with its intervals, and URG's two against what they must beat. document: metrics.json."""
    rows = document["data"]["rows"]
    return [_intervals(document, metrics, rows), _differences(document, rows)]


def _intervals(document: Mapping[str, Any], metrics: Sequence[str], rows: int) -> Sheet:
    lines = []
    for name, means in document["systems"].items():
        ends = document["intervals"].get(name, {})
        lines.append(Line((name, *(_cell(metric, means.get(metric), ends.get(metric)) for metric in metrics))))
    title = f"The first seed's systems on all {rows:,} rows of the test split"
    note = f"{document['statistics']}. They know nothing of another training: that is the spread over seeds."
    return Sheet(title, ("system", *metrics), (Group("", tuple(lines)),), notes=(note,))


def _cell(metric: str, mean: float | None, ends: Sequence[float] | None) -> str:
    if mean is None:
        return NONE
    digits = 2 if metric == "bleu" else 4
    return f"{mean:.{digits}f}" + (f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else "")


def _differences(document: Mapping[str, Any], rows: int) -> Sheet:
    """URG-rank's pick against other rankers' picks; URG's text against other fusers', the best single model's and
    the oracle's pick, by each metric that was tested."""
    lines = []
    for metric in document["tests"]:
        found = tested(document, metric)
        pairs = [("urg_rank", name) for name in RANKERS]
        if metric != "label":  # a fused text has none
            pairs += [("urg", name) for name in (*FUSERS, "urg_rank", *_best_model(document, metric), "oracle")]
        lines += [_difference(metric, pair, *found[pair]) for pair in pairs if pair in found]
    head = ("metric", "system", "against", "difference", "p (Holm)", "here")
    title = f"What is sure of the first seed on all {rows:,} rows"
    note = f"above, below: p < {SURE:g}, corrected over the pairs of a metric that the table above names."
    return Sheet(title, head, (Group("", tuple(lines)),), notes=(note,))


def tested(document: Mapping[str, Any], metric: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(system, other) → (difference, p after Holm's correction) of a metric, in both orders; empty where untested."""
    tests = document["tests"].get(metric, [])
    found = {(test["first"], test["second"]): (test["difference"], test["p_holm"]) for test in tests}
    return found | {(b, a): (-difference, p) for (a, b), (difference, p) in found.items()}


def _difference(metric: str, pair: tuple[str, str], difference: float, p: float) -> Line:
    verdict = "undecided" if p >= SURE else "above" if difference > 0 else "below"
    return Line((metric, *pair, f"{difference:+.4f}", f"{p:.2g}", verdict))


def _best_model(document: Mapping[str, Any], metric: str) -> list[str]:
    """The best single model by a metric, if there is one with a value."""
    systems, kinds = document["systems"], document["kinds"]
    models = [name for name, means in systems.items() if kinds.get(name) == "model" and metric in means]
    return [max(models, key=lambda name: float(systems[name][metric]))] if models else []
