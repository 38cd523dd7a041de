"""A report page: one HTML file that works offline, in light and dark, on wide and narrow screens.

Colours are CSS variables, light and dark; a colour of a figure that begins with -- is one of them. Whatever comes from
data must be escaped before it enters the page; Plotly reads a subset of HTML in labels, so there too.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

CSS = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --soft: #5d6778; --line: #e1e5ec; --accent: #2f6fdb;
  --second: #d97a1f;
  --third: #23946b; --wash: #eef3fd; --warn-bg: #fff1d6; --warn: #8a5200; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161d; --card: #1a2029; --text: #e6eaf1; --soft: #9aa6b8; --line: #2c3543; --accent: #6ea4ff;
  --second: #f0a04b;
  --third: #4cc496; --wash: #202b3d; --warn-bg: #3b2c0d; --warn: #ffcf7a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0 0 2px; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 40px 0 4px; }
h3 { font-size: 1rem; margin: 0 0 2px; }
p { margin: 4px 0 12px; } .soft { color: var(--soft); } small { color: var(--soft); }
.badge { display: inline-block; background: var(--warn-bg); color: var(--warn); border-radius: 99px; padding: 2px 12px;
  font-size: 0.8rem; font-weight: 600; margin: 8px 8px 0 0; }
.notes { margin: 12px 0 0; padding: 10px 14px 10px 30px; background: var(--warn-bg); color: var(--warn);
  border-radius: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 22px 0 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; min-width: 0; }
.card .name { color: var(--soft); font-size: 0.85rem; overflow-wrap: anywhere; }
.card .figure { font-size: 1.9rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.25; }
.card.ours { border-color: var(--accent); background: var(--wash); }
.bar { display: grid; grid-template-columns: minmax(120px, 190px) 1fr 64px; gap: 12px; align-items: center;
  margin: 6px 0; }
.bar .track { background: var(--line); border-radius: 99px; height: 10px; overflow: hidden; }
.bar .fill { background: var(--accent); height: 100%; border-radius: 99px; }
.bar .fill.over { background: var(--third); }
.bar .share { font-variant-numeric: tabular-nums; font-weight: 600; text-align: right; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.86rem; }
th, td { padding: 6px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); max-width: 40vw;
  overflow: hidden; text-overflow: ellipsis; }
tr:last-child td { border-bottom: 0; } tr.first td { border-top: 2px solid var(--line); }
tr.ranker td, tr.fuser td { background: var(--wash); } tr.ceiling td { color: var(--soft); font-style: italic; }
td b { color: var(--accent); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
.plot { width: 100%; min-width: 0; overflow: hidden; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; margin: 10px 0; }
summary { cursor: pointer; padding: 11px 16px; font-weight: 600; overflow-wrap: anywhere; }
  summary small { font-weight: 400; }
.case { padding: 0 16px 16px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 14em; overflow-y: auto; margin: 2px 0 12px;
  padding: 8px 12px;
  border-left: 3px solid var(--line); }
.text.fused { border-color: var(--accent); background: var(--wash); } .text.reference { border-color: var(--third); }
.candidate { border-top: 1px solid var(--line); padding-top: 8px; }
.candidate .head { display: flex; flex-wrap: wrap; gap: 2px 14px; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.tag { border-radius: 99px; padding: 0 9px; font-size: 0.78rem; border: 1px solid currentColor; }
.tag.used { color: var(--accent); } .tag.best { color: var(--third); }
.facts th, .facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
  .facts td:first-child { white-space: nowrap; }
ul.missing { padding-left: 20px; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 18px 12px 48px; } h1 { font-size: 1.4rem; }
  .bar { grid-template-columns: 1fr 56px; }
  .bar > :first-child { grid-column: 1 / -1; } }
@media print { details:not([open]) { display: none; } .text { max-height: none; } }
"""

JS = """
const dark = matchMedia('(prefers-color-scheme: dark)');
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function themed(value) {  // strings such as '--accent' name a colour of the style sheet
  if (typeof value === 'string') return value.startsWith('--') ? colour(value) : value;
  if (Array.isArray(value)) return value.map(themed);
  if (value && typeof value === 'object')
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
  return value;
}
function draw() {
  for (const source of document.querySelectorAll('script[data-figure]')) {
    const figure = themed(JSON.parse(source.textContent));
    Plotly.react(source.dataset.figure, figure.data, figure.layout, {displayModeBar: false, responsive: true});
  }
}
draw();
dark.addEventListener('change', draw);
"""


@dataclass(frozen=True)
class Figure:
    """A figure as plain Plotly JSON, and what to see in it."""

    title: str
    explanation: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def document(title: str, body: str, has_figures: bool) -> str:
    """The whole page; the library that draws is part of it. title: plain text; body: HTML."""
    scripts = ""
    if has_figures:
        from plotly.offline import get_plotlyjs

        scripts = f"<script>{get_plotlyjs()}</script>\n<script>{JS}</script>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n{scripts}\n</body>\n</html>\n"
    )


def figure_html(index: int, figure: Figure) -> str:
    """A card with the figure, which the page's script draws. index: its number on the page."""
    # "<" and "&" as \\u escapes: no text can end the script element, and JSON.parse gives the same string back
    source = json.dumps({"data": figure.data, "layout": figure.layout}, allow_nan=False)
    safe = source.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return (
        f'<div class="card"><h3>{html.escape(figure.title)}</h3><small>{html.escape(figure.explanation)}</small>'
        f'<div class="plot" id="figure-{index}"></div>'
        f'<script type="application/json" data-figure="figure-{index}">{safe}</script></div>'
    )


def short_name(name: str) -> str:
    """A model's name for an axis, cut to what fits and escaped."""
    return html.escape(name if len(name) <= 26 else f"{name[:12]}…{name[-12:]}")


def bar(name: str, labels: list[str], values: list[float], colour: str) -> dict[str, Any]:
    """Horizontal bars of percents. labels: escaped."""
    hover = "%{y}: %{x:.1f} %<extra></extra>"
    drawn = {"type": "bar", "orientation": "h", "name": name, "y": labels, "x": values, "hovertemplate": hover}
    return drawn | {"marker": {"color": colour}}


LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "reversed", "font": {"size": 12}}


def figure_layout(x_title: str, y_title: str, height: int = 340, left: bool = False) -> dict[str, Any]:
    """What figures have in common. left: names on the y axis, which need room."""
    axis = {"gridcolor": "--line", "zerolinecolor": "--line", "linecolor": "--line", "automargin": True}
    names = {"showgrid": False, "ticksuffix": " "} if left else {}
    return {
        "autosize": True,
        "height": height,
        "margin": {"l": 10 if left else 60, "r": 16, "t": 36, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--text", "family": "system-ui, sans-serif", "size": 12.5},
        "xaxis": axis | {"title": {"text": x_title}},
        "yaxis": axis | {"title": {"text": y_title}} | names,
        "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
    }
