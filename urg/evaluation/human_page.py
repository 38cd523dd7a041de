"""The page that a rater fills in: one file, works offline, keeps what was rated in the browser, saves a CSV."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_pipeline.page import document

if TYPE_CHECKING:
    from urg.evaluation.human import Item

STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 14px; }
.item { margin: 0 0 22px; } .item.done { border-color: var(--third); }
.question { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 10px; }
fieldset { border: 0; padding: 0; margin: 6px 0; display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; }
legend { float: left; width: 9.5em; color: var(--soft); font-size: 0.86rem; }
label { display: inline-flex; gap: 4px; align-items: center; padding: 4px 2px; }
.dock { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 12px; align-items: center;
  background: var(--page); padding: 12px 0; border-bottom: 1px solid var(--line); margin-bottom: 18px; }
.dock button { font: inherit; font-weight: 600; padding: 6px 16px; border-radius: 8px; border: 1px solid var(--accent);
  background: var(--accent); color: var(--card); cursor: pointer; }
"""

SCRIPT = """
const form = document.querySelector('form'), key = 'rating/' + form.dataset.sheet;
const columns = JSON.parse(form.dataset.columns), items = [...document.querySelectorAll('.item')];
const storage = (() => { try { return window.localStorage; } catch { return null; } })();
const kept = JSON.parse(storage?.getItem(key) || '{}');
for (const [name, value] of Object.entries(kept)) {
  const input = [...form.elements].find(e => e.name === name && e.value === value);
  if (input) input.checked = true;
}
const rating = (item, column) => new FormData(form).get(item.dataset.item + '/' + column) || '';
function show() {
  let done = 0;
  for (const item of items) {
    const whole = columns.every(column => rating(item, column));
    item.classList.toggle('done', whole);
    done += whole;
  }
  document.querySelector('#done').textContent = done + ' of ' + items.length + ' rated';
  return done;
}
form.addEventListener('change', () => {
  storage?.setItem(key, JSON.stringify(Object.fromEntries(new FormData(form))));
  show();
});
document.querySelector('#save').addEventListener('click', () => {
  const open = items.find(item => !columns.every(column => rating(item, column)));
  if (open && !confirm('Not everything is rated. Save what there is?')) { open.scrollIntoView(); return; }
  const rated = item => columns.map(column => rating(item, column));
  const lines = items.map(item => [item.dataset.item, form.dataset.sheet, ...rated(item)].join(','));
  const text = ['item,sheet,' + columns.join(','), ...lines].join('\\n') + '\\n';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'text/csv'}));
  link.download = 'ratings.csv';
  link.click();
});
show();
"""


def rating_page(items: Sequence[Item], criteria: Sequence[str], sheet: str) -> str:
    """The page. sheet: its id, under which the browser keeps the ratings, and which goes into the CSV."""
    columns = [f"{criterion}_{side}" for criterion in criteria for side in (1, 2)]
    body = "\n".join(_item(item, criteria) for item in items)
    attributes = f'data-sheet="{html.escape(sheet)}" data-columns="{html.escape(json.dumps(columns))}"'
    page = (
        f"<style>{STYLE}</style><h1>Rating sheet</h1>\n"
        f'<p class="soft">{len(items)} questions, two answers each. Rate both answers from 1 (worst) to 5 (best): does '
        "the answer fit the question (appropriateness), how much does it tell (informativeness), how good is it in all "
        "(overall). Your ratings stay in this browser until you save them as a file and hand that in.</p>\n"
        '<div class="dock"><span id="done"></span><button id="save" type="button">Save as CSV</button></div>\n'
        f"<form {attributes}>\n{body}\n</form>\n<script>{SCRIPT}</script>"
    )
    return document("Rating sheet", page, has_figures=False)


def _item(item: Item, criteria: Sequence[str]) -> str:
    answers = "".join(_answer(item, side, criteria) for side in (1, 2))
    return (
        f'<section class="card item" data-item="{item.number}"><small>{item.number}</small>'
        f'<p class="question">{html.escape(item.question)}</p><div class="pair">{answers}</div></section>'
    )


def _answer(item: Item, side: int, criteria: Sequence[str]) -> str:
    text = html.escape(item.answers[side - 1]) or '<span class="soft">(empty)</span>'
    rows = "".join(_scale(f"{item.number}/{criterion}_{side}", criterion) for criterion in criteria)
    return f'<div><h3>Answer {side}</h3><div class="text">{text}</div>{rows}</div>'


def _scale(name: str, criterion: str) -> str:
    choices = "".join(f'<label><input type="radio" name="{name}" value="{n}">{n}</label>' for n in range(1, 6))
    return f"<fieldset><legend>{criterion}</legend>{choices}</fieldset>"
