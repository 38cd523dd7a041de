"""Systems side by side on the same rows: what each answered, and every metric of it. No files, no printing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from urg.evaluation.config import JudgeConfig
from urg.evaluation.judge import (
    JUDGE_METRICS,
    NO_VERDICTS,
    Judged,
    judge_metrics,
    read_verdicts,
)
from urg.evaluation.oracles import oracles
from urg.evaluation.rank_metrics import FEW_LABELS, RANK_METRICS, rank_metrics, why_undefined
from urg.evaluation.text_metrics import (
    MODEL_METRICS,
    NO_REFERENCE,
    NO_WORDS,
    ROUGE,
    TEXT_METRICS,
    TextMetrics,
    corpus_bleu,
)
from urg.systems.protocol import KINDS, Answer, Kind, System

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample

Floats = NDArray[np.float64]

METRICS = ("label", *RANK_METRICS, *TEXT_METRICS, *JUDGE_METRICS)
LOWER_IS_BETTER = frozenset({"gpt_rank"})
NO_LABEL = "the picked candidate has no label"
NOT_A_CANDIDATE = "the answer is a new text, not a candidate, so it has no label and no rank"
NO_RANKING = "a single model does not rank the candidates"
WINNER_ONLY = "the system gives a winner only, no ranking of the candidates"
WIDE_COVERAGE = 0.9  # a best single model must stand in this share of the rows that the most frequent one stands in


@dataclass(frozen=True)
class Result:
    """One system on all rows. `values[metric]` [R]: NaN where the row has no value.

    Every metric is either in `means` or in `missing`.
    """

    name: str
    kind: Kind
    answers: list[Answer | None]
    values: dict[str, Floats]
    means: dict[str, float]  # over the rows that have a value; also corpus_bleu
    counts: dict[str, int]  # those rows, by metric
    missing: dict[str, str]  # metric → why it has no value
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)  # rank or judge metric → reason → rows

    @property
    def rows(self) -> int:
        """Rows that the system answered."""
        return sum(answer is not None for answer in self.answers)


@dataclass(frozen=True)
class Comparison:
    """All systems on the rows of one split, in the order that tables show them."""

    rows: Sequence[TokenizedExample]
    label: str
    results: tuple[Result, ...]
    missing: dict[str, str]  # a metric that no system has, or a system that could not run → why
    bleu_signature: str | None = None
    judged: Judged = field(default_factory=lambda: Judged((), {}))

    def missing_by_reason(self) -> dict[str, list[str]]:
        """`missing` the other way round: reason → metrics or systems."""
        found: dict[str, list[str]] = {}
        for name, reason in self.missing.items():
            found.setdefault(reason, []).append(name)
        return found

    def get(self, name: str) -> Result | None:
        """The result of a system, or None where it did not run."""
        return next((result for result in self.results if result.name == name), None)


def compare(
    rows: Sequence[TokenizedExample],
    label: str,
    systems: Sequence[System],
    text_metrics: TextMetrics,
    unavailable: dict[str, str] | None = None,
    judge: JudgeConfig | None = None,
    ceilings: bool = False,
) -> Comparison:
    """Run every system on `rows` and score its answers. unavailable: systems that cannot run, and why. ceilings: add
    the oracle of each metric."""
    judge = judge or JudgeConfig()
    judged = read_verdicts(rows, judge)
    references = [row.output for row in rows]
    labels = [_labels(row, label) for row in rows]
    answered = [(system, system.answer(rows)) for system in systems]
    _score_all(rows, [answers for _, answers in answered], text_metrics)
    answered += [(each, each.answer(rows)) for each in (oracles(rows, text_metrics, judged) if ceilings else ())]
    results, signature = [], None
    for system, answers in answered:
        values = {"label": _label_values(answers, labels)}
        ranks, left_out = _rank_values(system.kind, answers, labels)
        verdicts, not_judged = judge_metrics(answers, rows, judged, judge, system.kind == "model")
        texts = [None if answer is None else answer.text for answer in answers]
        values |= ranks | verdicts | text_metrics.values(texts, references)
        whole = corpus_bleu(texts, references)
        left_out |= not_judged
        results.append(_result(system, answers, values, left_out, None if whole is None else whole[0]))
        signature = whole[1] if whole else signature
    ordered = sorted(results, key=lambda result: (KINDS.index(result.kind), -_merit(result)))
    missing = text_metrics.missing | _missing_everywhere(ordered) | (unavailable or {})
    return Comparison(rows, label, tuple(ordered), missing, signature, judged)


def _score_all(
    rows: Sequence[TokenizedExample], answers: Sequence[Sequence[Answer | None]], text_metrics: TextMetrics
) -> None:
    """Score all texts at once: the candidates, row by row (ROUGE keeps the reference's words), then what systems wrote.
    Everything else is then looked up."""
    texts: list[str | None] = [text for row in rows for text in row.texts]
    references = [row.output for row in rows for _ in row.texts]
    for own in answers:
        texts += [None if answer is None else answer.text for answer in own]
        references += [row.output for row in rows]
    text_metrics.values(texts, references)


def _missing_everywhere(results: Sequence[Result]) -> dict[str, str]:
    """The metrics that no system has, each with the reason that most of them give."""
    found = {}
    for metric in (*METRICS, "corpus_bleu"):
        reasons = [result.missing[metric] for result in results if metric in result.missing]
        if reasons and len(reasons) == len(results):
            found[metric] = Counter(reasons).most_common(1)[0][0]
    return found


def _labels(row: TokenizedExample, label: str) -> Floats:
    missing = np.full(len(row.texts), np.nan)
    return np.asarray(row.scores.get(label, missing), dtype=np.float64)


def _label_values(answers: Sequence[Answer | None], labels: Sequence[Floats]) -> Floats:
    """The label of what was picked; NaN where nothing was, or nothing that has one."""
    picks = zip(answers, labels, strict=True)
    return np.array([np.nan if a is None or a.picked is None else labels_N[a.picked] for a, labels_N in picks])


def _rank_values(
    kind: Kind, answers: Sequence[Answer | None], labels: Sequence[Floats]
) -> tuple[dict[str, Floats], dict[str, dict[str, int]]]:
    """The rank metrics of a system that ranks; of one that only picks, hit@1: how often its pick is the best."""
    if kind in ("fuser", "closed"):
        return {}, {}
    if all(answer is None or answer.scores is None for answer in answers):
        hits, reasons = _pick_hits(answers, labels)
        return {"hit@1": hits}, {"hit@1": reasons}
    scored = rank_metrics([None if answer is None else answer.scores for answer in answers], labels)
    return scored.values, scored.left_out


def _pick_hits(answers: Sequence[Answer | None], labels: Sequence[Floats]) -> tuple[Floats, dict[str, int]]:
    hits, reasons = np.full(len(labels), np.nan), Counter[str]()
    for row, (answer, labels_N) in enumerate(zip(answers, labels, strict=True)):
        if answer is None or answer.picked is None:
            continue  # `rows` shows how many rows the model stands in
        reason = why_undefined(np.zeros(len(labels_N)), labels_N, "hit@1")
        if reason is None and np.isnan(labels_N[answer.picked]):
            reason = NO_LABEL
        if reason is None:
            hits[row] = labels_N[answer.picked] == np.nanmax(labels_N)
        else:
            reasons[reason] += 1
    return hits, dict(reasons)


def _result(
    system: System,
    answers: list[Answer | None],
    values: dict[str, Floats],
    left_out: dict[str, dict[str, int]],
    whole_bleu: float | None,
) -> Result:
    present = {metric: values[metric][~np.isnan(values[metric])] for metric in METRICS if metric in values}
    means = {metric: float(kept.mean()) for metric, kept in present.items() if len(kept)}
    counts = {metric: len(kept) for metric, kept in present.items()}
    if whole_bleu is not None:
        means["corpus_bleu"], counts["corpus_bleu"] = whole_bleu, counts["bleu"]
    asked = [m for m in (*METRICS, "corpus_bleu") if m not in MODEL_METRICS or m in values]
    missing = {m: _why(system.kind, m, answers, means, left_out) for m in asked if m not in means}
    return Result(system.name, system.kind, answers, values, means, counts, missing, left_out)


def _why(
    kind: Kind,
    metric: str,
    answers: Sequence[Answer | None],
    means: dict[str, float],
    left_out: dict[str, dict[str, int]],
) -> str:
    """Why a system has no value of a metric."""
    if not any(answers):
        return "the system answered no row"
    if metric in ROUGE and "bleu" in means:
        return NO_WORDS
    if metric in (*TEXT_METRICS, "corpus_bleu"):
        return NO_REFERENCE
    if all(answer is None or answer.picked is None for answer in answers):
        return NOT_A_CANDIDATE
    if metric in JUDGE_METRICS:
        judged = left_out.get(metric)
        return f"in every row: {max(judged, key=lambda reason: judged[reason])}" if judged else NO_VERDICTS
    if metric == "label":
        return f"{NO_LABEL}, in every row"
    if metric != "hit@1" and all(answer is None or answer.scores is None for answer in answers):
        return NO_RANKING if kind == "model" else WINNER_ONLY
    reasons = left_out.get(metric) or {FEW_LABELS: 0}
    return f"in every row: {max(reasons, key=lambda reason: reasons[reason])}"


def _merit(result: Result) -> float:
    """What systems of one kind are sorted by."""
    return result.means.get("label", result.means.get("rougeL", float("-inf")))


@dataclass(frozen=True)
class Gap:
    """From the best single model to the oracle on one metric, over the `rows` where all systems named here have it."""

    metric: str
    best_model: str
    rows: int
    means: dict[str, float]  # best_model's name, oracle, and urg_rank and urg where they have the metric
    closed: dict[
        str, float
    ]  # urg_rank, urg: share of the gap closed; absent where the oracle is not above the best model


def gaps(comparison: Comparison) -> list[Gap]:
    """The gap on the label and on each text metric that the oracle (which picks by the label) has."""
    found = (_gap(comparison, metric) for metric in ("label", *TEXT_METRICS))
    return [gap for gap in found if gap is not None]


def _gap(comparison: Comparison, metric: str) -> Gap | None:
    models = [r for r in comparison.results if r.kind == "model" and metric in r.means]
    oracle = comparison.get("oracle")
    if not models or oracle is None or metric not in oracle.means:
        return None
    widest = max(result.counts[metric] for result in models)
    candidates = [result for result in models if result.counts[metric] >= WIDE_COVERAGE * widest]
    best = max(candidates, key=lambda result: result.means[metric])
    ours = [r for r in map(comparison.get, ("urg_rank", "urg")) if r is not None and metric in r.means]
    compared = [best, oracle, *ours]
    common = ~np.isnan([result.values[metric] for result in compared]).any(axis=0)
    if not common.any():
        return None
    means = {result.name: float(result.values[metric][common].mean()) for result in compared}
    span = means["oracle"] - means[best.name]
    closed = {result.name: (means[result.name] - means[best.name]) / span for result in ours} if span > 1e-12 else {}
    return Gap(metric, best.name, int(common.sum()), means, closed)
