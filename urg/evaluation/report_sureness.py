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

STYLE = """
tr.group td { color: var(--soft); font-weight: 600; text-align: left; background: var(--wash); }
th.span { text-align: center; } td.published { color: var(--soft); background: var(--page); }
.matrix td, .matrix th { font-size: 0.78rem; } .matrix th { max-width: 9em; overflow: hidden; text-overflow: ellipsis; }
.matrix td.up { color: var(--third); } .matrix td.down { color: var(--second); } .matrix td.sure { font-weight: 650; }
.interval { display: grid; grid-template-columns: minmax(70px, 25%) 1fr 142px; gap: 10px; align-items: center;
  font-size: 0.84rem; font-variant-numeric: tabular-nums; padding: 1px 0; }
.interval .who { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.interval .range { position: relative; height: 14px; border-bottom: 1px solid var(--line); }
.interval .range i { position: absolute; top: 4px; height: 6px; min-width: 2px; border-radius: 3px; opacity: .5;
  background: var(--soft); }
.interval .range b { position: absolute; top: 2px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  background: var(--soft); }
.interval.ranker .range *, .interval.fuser .range * { background: var(--accent); }
.interval.ceiling .range * { background: var(--third); }
"""

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
        for sheet in (
            table2(comparison, provenance.title, parameters=provenance.model.get("parameters")),
            poster(comparison, provenance.title),
        )
    ]
    return f"<style>{STYLE}</style><h2>Beside the published figures</h2>{''.join(parts)}"
