"""The report's style sheet and script. Colours are CSS variables, light and dark; figures take theirs from the same."""

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
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
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
