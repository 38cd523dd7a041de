"""The report's cases: some rows with their question, reference, fused text, and candidates in URG's order."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample
    from urg.evaluation.comparison import Comparison, Result
    from urg.systems import Answer

SHOWN_CHARACTERS = 1500  # of a text; the whole stands in predictions.parquet


def choose_cases(comparison: Comparison, count: int, seed: int = 0) -> list[tuple[int, str]]:
    """(row index, why it is shown): a third where URG did best, a third where it did worst, the rest drawn at random.

    Best and worst go by ROUGE-L of the fused text minus that of the oracle's pick; without references by the label of
    URG's pick minus the best label; without URG all are drawn.
    """
    margin, what = _margin(comparison)
    known = np.flatnonzero(~np.isnan(margin))
    order = known[np.argsort(-margin[known], kind="stable")]
    third = min(count // 3, len(order) // 2)
    chosen = [(int(row), f"{what} best") for row in order[:third]]
    chosen += [(int(row), f"{what} worst") for row in order[::-1][:third]]
    left = sorted(set(range(len(comparison.rows))) - {row for row, _ in chosen})
    drawn = np.random.default_rng(seed).permutation(len(left))[: max(count - len(chosen), 0)]
    return chosen + [(left[index], "drawn at random") for index in sorted(drawn)]


def _margin(comparison: Comparison) -> tuple[NDArray[np.float64], str]:
    oracle, ranked, fused = (comparison.get(name) for name in ("oracle", "urg_rank", "urg"))
    if oracle is not None and fused is not None and "rougeL" in fused.means and "rougeL" in oracle.means:
        return fused.values["rougeL"] - oracle.values["rougeL"], "fused text against the oracle pick:"
    if oracle is not None and ranked is not None:
        return ranked.values["label"] - oracle.values["label"], "URG's pick against the oracle pick:"
    return np.full(len(comparison.rows), np.nan), ""


def cases_html(comparison: Comparison, count: int) -> str:
    """The chosen cases, each a folded section; the first one open."""
    parts = [
        _case(comparison, index, why, is_open=place == 0)
        for place, (index, why) in enumerate(choose_cases(comparison, count))
    ]
    return "\n".join(parts)


def _case(comparison: Comparison, index: int, why: str, is_open: bool) -> str:
    row = comparison.rows[index]
    fused, ranked = comparison.get("urg"), comparison.get("urg_rank")
    body = [_block("Question", f"{row.instruction}\n{row.input}".strip())]
    if row.output.strip():
        body.append(_block("Reference", row.output, "reference"))
    if fused is not None and (answer := fused.answers[index]) is not None:
        body.append(_block(f"Fused by URG{_rouge(fused, index)}", answer.text, "fused"))
    used = () if fused is None or fused.answers[index] is None else fused.answers[index].used  # type: ignore[union-attr]
    body.append(_candidates(comparison, row, None if ranked is None else ranked.answers[index], used))
    opened = " open" if is_open else ""
    title = f"{html.escape(_cut(row.id, 80))} <small>{html.escape(why)}</small>"
    return f'<details{opened}><summary>{title}</summary><div class="case">{"".join(body)}</div></details>'


def _rouge(result: Result, index: int) -> str:
    values = result.values.get("rougeL")
    return "" if values is None or np.isnan(values[index]) else f" (ROUGE-L {values[index]:.3f})"


def _candidates(comparison: Comparison, row: TokenizedExample, answer: Answer | None, used: Sequence[int]) -> str:
    """The candidates of a row, best score first; without URG in the data's order."""
    labels = np.asarray(row.scores.get(comparison.label, np.full(len(row.texts), np.nan)), dtype=np.float64)
    scores = None if answer is None else answer.scores
    order = list(range(len(row.texts))) if scores is None else np.argsort(-scores, kind="stable").tolist()
    best = np.nan if np.isnan(labels).all() else np.nanmax(labels)
    parts = [f"<h3>{len(order)} candidates{'' if scores is None else ', in the order of URG'}</h3>"]
    for rank, i in enumerate(order, start=1):
        facts = [f"<b>{rank}. {html.escape(row.models[i])}</b>"]
        if scores is not None:
            facts.append(f"<small>score {scores[i] / scores.mean():.3f} × mean</small>")
        value = "missing" if np.isnan(labels[i]) else f"{labels[i]:.4g}"
        facts.append(f"<small>{html.escape(comparison.label)} {value}</small>")
        if i in used:
            facts.append('<span class="tag used">fused</span>')
        if labels[i] == best:
            facts.append('<span class="tag best">best label</span>')
        head = f'<div class="head">{"".join(facts)}</div>'
        parts.append(f'<div class="candidate">{head}{_text(row.texts[i])}</div>')
    return "".join(parts)


def _block(title: str, text: str, kind: str = "") -> str:
    return f"<h3>{html.escape(title)}</h3>{_text(text, kind)}"


def _text(text: str, kind: str = "") -> str:
    shown = html.escape(_cut(text, SHOWN_CHARACTERS)) or '<span class="soft">(empty)</span>'
    return f'<div class="{f"text {kind}".strip()}">{shown}</div>'


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"
