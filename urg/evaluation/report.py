"""The HTML report of an evaluation: one file that works offline, in light and dark, on wide and narrow screens.

Whatever comes from data (texts, ids, names of models and scores) passes through html.escape before it enters the page.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.page import Figure, document, figure_html
from urg.evaluation.comparison import Comparison, Gap, Result, gaps
from urg.evaluation.report_cases import cases_html
from urg.evaluation.report_figures import figures
from urg.evaluation.table import NONE, best, cell, columns, heading

if TYPE_CHECKING:
    from urg.evaluation.results import Provenance

HEADLINE = {"urg_rank": "URG top-1 pick", "urg": "URG fused text", "oracle": "Oracle pick"}


def report_page(comparison: Comparison, provenance: Provenance, cases: int = 9) -> str:
    """The page. cases: how many rows are shown with all their candidates."""
    drawn = figures(comparison)
    sections = [
        _header(provenance),
        _headline(comparison),
        "<h2>All systems</h2>",
        _table_notes(),
        f'<div class="scroll">{_table(comparison)}</div>',
        _missing(comparison),
        _figures(drawn),
        f"<h2>Cases</h2>{cases_html(comparison, cases)}" if cases else "",
        _facts(provenance),
    ]
    return document(f"URG evaluation: {provenance.title}", "\n".join(filter(None, sections)), bool(drawn))


def _header(provenance: Provenance) -> str:
    data = provenance.data
    line = f"{data['split']} split, {data['rows']:,} rows; label: {data['label']}"
    badges = "".join(f'<span class="badge">{html.escape(warning)}</span>' for warning in provenance.warnings)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in provenance.notes)
    listed = f'<ul class="notes">{notes}</ul>' if notes else ""
    return f'<h1>URG evaluation</h1><div class="soft">{html.escape(line)}</div>{badges}{listed}'


def _headline(comparison: Comparison) -> str:
    """Best single model, URG's pick, URG's text, oracle; and how much of the gap URG closes."""
    found = {gap.metric: gap for gap in gaps(comparison)}
    main = found.get("rougeL") or found.get("label")
    if main is None:
        return ""
    names = {main.best_model: f"Best single model: {main.best_model}"} | HEADLINE
    cards = [_card(comparison, name, title, main.metric) for name, title in names.items()]
    shown = [found[metric] for metric in ("label", "rougeL", "bertscore") if metric in found]
    bars = [bar for gap in shown for bar in _bars(comparison, gap)]
    explanation = '<p class="soft">Share of the gap from the best single model to the oracle pick that is closed:</p>'
    return f'<div class="cards">{"".join(cards)}</div>' + (explanation + "".join(bars) if bars else "")


def _card(comparison: Comparison, name: str, title: str, metric: str) -> str:
    result = comparison.get(name)
    if result is None:
        return ""
    others = [m for m in ("label", "rougeL", "bertscore") if m != metric and m in result.means]
    lines = "".join(f"<div><small>{_head(m, comparison)} {cell(result, m)}</small></div>" for m in others)
    ours = " ours" if name in ("urg", "urg_rank") else ""
    figure = f'<div class="figure">{cell(result, metric)}</div><div><small>{_head(metric, comparison)}</small></div>'
    return f'<div class="card{ours}"><div class="name">{html.escape(title)}</div>{figure}{lines}</div>'


def _bars(comparison: Comparison, gap: Gap) -> list[str]:
    """A bar for each of our systems that has the metric."""
    parts = []
    for name, share in gap.closed.items():
        width = 100 * min(max(share, 0.0), 1.0)
        caption = f"{HEADLINE[name]}<br><small>{_head(gap.metric, comparison)}</small>"
        over = " over" if share > 1 else ""
        track = f'<div class="track"><div class="fill{over}" style="width:{width:.1f}%"></div></div>'
        parts.append(f'<div class="bar"><div>{caption}</div>{track}<div class="share">{share:.0%}</div></div>')
    return parts


def _table_notes() -> str:
    return (
        '<p class="soft">Best of a column in bold (the oracle, which sees the labels, is a ceiling and cannot be it). '
        "BLEU 0–100, the rest of the text metrics 0–1. “rows”: rows that a system answered.</p>"
    )


def _table(comparison: Comparison) -> str:
    metrics, marked = columns(comparison), best(comparison)
    head = "".join(f"<th>{text}</th>" for text in ["system", "rows", *(_head(m, comparison) for m in metrics)])
    body, previous = [], None
    for result in comparison.results:
        cells = [_cell(result, m, (result.name, m) in marked) for m in metrics]
        classes = result.kind + (" first" if previous not in (None, result.kind) else "")
        previous = result.kind
        name = html.escape(result.name)
        body.append(f'<tr class="{classes}"><td title="{name}">{name}</td><td>{result.rows}</td>{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(result: Result, metric: str, is_best: bool) -> str:
    text = f"<b>{cell(result, metric)}</b>" if is_best else cell(result, metric)
    over = f' title="over {result.counts[metric]} rows"' if metric in result.means else ""
    return f"<td{over}>{text}</td>"


def _head(metric: str, comparison: Comparison) -> str:
    return html.escape(heading(metric, comparison))


def _missing(comparison: Comparison) -> str:
    """Why a metric or a system is not there at all, and what – means in a column."""
    reasons = [f"{', '.join(names)}: {reason}" for reason, names in comparison.missing_by_reason().items()]
    for metric in columns(comparison):
        by_reason: dict[str, list[str]] = {}
        for result in comparison.results:
            if metric in result.missing:
                by_reason.setdefault(result.missing[metric], []).append(result.name)
        reasons += [f"{metric} of {_listed(names)}: {reason}" for reason, names in by_reason.items()]
    items = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
    summary = f"<summary>What is missing ({NONE}), and why</summary>"
    return f'<details>{summary}<div class="case"><ul class="missing">{items}</ul></div></details>' if items else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _figures(drawn: Sequence[Figure]) -> str:
    inner = "".join(figure_html(index, figure) for index, figure in enumerate(drawn))
    return f'<h2>How URG ranks</h2><div class="figures">{inner}</div>' if drawn else ""


def _facts(provenance: Provenance) -> str:
    """Where data and model came from, and every setting."""
    rows = []
    for group in ("data", "model", "settings"):
        for key, value in getattr(provenance, group).items():
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
            rows.append(f"<tr><td>{group}.{html.escape(key)}</td><td>{html.escape(shown)}</td></tr>")
    table = f'<div class="scroll"><table class="facts">{"".join(rows)}</table></div>'
    folded = f'<details><summary>Data, model and settings</summary><div class="case">{table}</div></details>'
    return f"<h2>How this was made</h2>{folded}"
