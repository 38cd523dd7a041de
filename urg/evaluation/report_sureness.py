"""The report's part on how sure the figures are (intervals, tested differences), and on what papers published."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from urg.evaluation.comparison import LOWER_IS_BETTER, Comparison
from urg.evaluation.paper_tables import differences, is_mixinstruct, poster, table2
from urg.evaluation.sheet import Sheet, as_html
from urg.evaluation.table import heading, number

if TYPE_CHECKING:
    from urg.evaluation.results import Provenance
    from urg.evaluation.statistics import Statistics

SHOWN = ("label", "rougeL", "bertscore", "bartscore", "bleurt", "gpt_rank")  # whose intervals are drawn


def sureness_html(comparison: Comparison, stats: Statistics) -> str:
    """Means with their intervals, and the differences of each tested metric; "" where there is neither."""
    drawn = [_intervals(comparison, stats, metric) for metric in SHOWN]
    tested = [_tested(differences(comparison, stats, metric), is_open=i == 0) for i, metric in enumerate(stats.tests)]
    parts = [part for part in drawn if part]
    if not parts and not tested:
        return ""
    figures = f'<div class="figures">{"".join(parts)}</div>' if parts else ""
    explanation = f'<p class="soft">{html.escape(_sentence(stats.method))}</p>'
    return f"<h2>How sure the figures are</h2>{explanation}{figures}{''.join(tested)}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _intervals(comparison: Comparison, stats: Statistics, metric: str) -> str:
    """A line a system: its mean as a dot on its interval, best first."""
    found = [r for r in comparison.results if metric in stats.intervals.get(r.name, {})]
    if not found:
        return ""
    ends = np.array([stats.intervals[result.name][metric] for result in found])
    low, width = float(ends.min()), float(np.ptp(ends)) or 1.0
    found.sort(key=lambda result: result.means[metric], reverse=metric not in LOWER_IS_BETTER)
    lines = []
    for result in found:
        start, end = stats.intervals[result.name][metric]
        left, right, dot = (100 * (value - low) / width for value in (start, end, result.means[metric]))
        shown = f"{number(metric, result.means[metric])} [{number(metric, start)}, {number(metric, end)}]"
        lines.append(
            f'<div class="interval {result.kind}"><div class="who" title="{html.escape(result.name)}">'
            f'{html.escape(result.name)}</div><div class="range"><i style="left:{left:.2f}%;width:{right - left:.2f}%">'
            f'</i><b style="left:{dot:.2f}%"></b></div><small>{shown}</small></div>'
        )
    return f'<div class="card"><h3>{html.escape(heading(metric, comparison))}</h3>{"".join(lines)}</div>'


def _tested(sheet: Sheet, is_open: bool) -> str:
    """The differences as a folded matrix, coloured by sign, bold where the test is sure."""
    head = "".join(f'<th title="{html.escape(name)}">{html.escape(name)}</th>' for name in sheet.head)
    rows = []
    for line in sheet.groups[0].lines:
        cells = "".join(f'<td class="{_class(text)}">{html.escape(text)}</td>' for text in line.cells[1:])
        rows.append(f'<tr><td title="{html.escape(line.cells[0])}">{html.escape(line.cells[0])}</td>{cells}</tr>')
    table = f'<table class="matrix"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    body = f'<div class="scroll">{table}</div><p class="soft">{html.escape(sheet.notes[0])}</p>'
    opened = " open" if is_open else ""
    return f'<details{opened}><summary>{html.escape(sheet.title)}</summary><div class="case">{body}</div></details>'


def _class(text: str) -> str:
    sign = "up" if text.startswith("+") else "down" if text.startswith("−") else ""
    return f"{sign} sure".strip() if text.endswith("*") else sign


def published_html(comparison: Comparison, provenance: Provenance) -> str:
    """Table 2 and the poster's table, folded unless the models are MixInstruct's."""
    opened = " open" if is_mixinstruct(comparison) else ""
    parts = [
        f"<details{opened}><summary>{html.escape(sheet.title)}</summary>"
        f'<div class="case">{as_html(sheet)}</div></details>'
        for sheet in (table2(comparison, provenance.title), poster(comparison, provenance.title))
    ]
    return f"<h2>Beside the published figures</h2>{''.join(parts)}"
