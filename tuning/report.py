"""The report of a sweep: one HTML page that works offline, and the same in short as Markdown.

Names of keys and choices come from a configuration file: they pass through html.escape before they enter the page.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.page import document, figure_html
from tuning.report_figures import Section, comparable, importances, sections

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuning.ledger import Ledger

_STATES = {"COMPLETE": "finished", "PRUNED": "ended early", "FAIL": "failed"}


def write_report(ledger: Ledger) -> list[Path]:
    """Write report.html and report.md into the sweep's folder; their paths."""
    drawn = sections(ledger)
    page, text = ledger.blueprint.folder / "report.html", ledger.blueprint.folder / "report.md"
    page.write_text(report_page(ledger, drawn), encoding="utf-8")
    text.write_text(report_markdown(ledger), encoding="utf-8")
    return [page, text]


def report_page(ledger: Ledger, drawn: Sequence[Section]) -> str:
    """The page."""
    best, name = ledger.best(), ledger.blueprint.config.name
    parts = [f"<h1>Sweep {html.escape(name)}</h1>", f'<div class="soft">{html.escape(_subtitle(ledger))}</div>']
    parts.append(_cards(ledger))
    if best is not None:
        parts += ["<h2>Best configuration</h2>", _best(ledger, best)]
    numbers = itertools.count()
    for section in drawn:
        cards = "".join(figure_html(next(numbers), figure) for figure in section.figures)
        note = f'<p class="soft">{html.escape(section.note)}</p>' if section.note else ""
        wide = "" if section.wide else ' class="figures"'
        parts.append(f"<h2>{html.escape(section.title)}</h2>{note}<div{wide}>{cards}</div>")
    parts += ["<h2>All trials</h2>", f'<div class="scroll">{_table(ledger)}</div>', _settings(ledger)]
    return document(f"Sweep {name}", "\n".join(parts), has_figures=any(section.figures for section in drawn))


def report_markdown(ledger: Ledger) -> str:
    """The same in short: the best point, what mattered, every trial."""
    config, best = ledger.blueprint.config, ledger.best()
    lines = [f"# Sweep {config.name}", "", _subtitle(ledger), ""]
    if best is not None:
        files = "configuration in `best-trial.yaml`, the full training with it in `best.yaml`"
        lines += [f"Best: trial {best.number}, {_values(ledger, best)}; {files}.", ""]
        lines += [f"- `{key}`: {_shown(value)}" for key, value in ledger.values(best.number).items()] + [""]
    if weights := importances(ledger):
        which = comparable(ledger)[1]
        lines += [f"What mattered (share of the objective's variance, fANOVA over {which}):", ""]
        lines += [f"- `{key}`: {weight:.2f}" for key, weight in weights.items()] + [""]
    head, rows = _rows(ledger)
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for _, row in rows]
    return "\n".join(lines) + "\n"


def _subtitle(ledger: Ledger) -> str:
    config, ended = ledger.blueprint.config, ledger.ended()
    counts = {label: sum(trial.state.name == state for trial in ended) for state, label in _STATES.items()}
    shown = ", ".join(f"{count} {label}" for label, count in counts.items() if count)
    folds = f"; mean of {config.folds} folds" if config.folds else ""
    return f"{len(ended)} trials ({shown}) by {config.searcher}, to raise {', '.join(config.objective)}{folds}."


def _cards(ledger: Ledger) -> str:
    """The best, the base's own point, and what it cost."""
    best, config = ledger.best(), ledger.blueprint.config
    cards = []
    if best is not None:
        cards.append(_card(f"Best: trial {best.number}", f"{best.values[0]:.4f}", config.objective[0], "ours"))
    base = next((trial for trial in ledger.ended() if config.base_first and trial.number == 0), None)
    if base is not None and base.state.name == "COMPLETE":
        cards.append(_card("The base's own point: trial 0", f"{base.values[0]:.4f}", config.objective[0]))
    seconds = sum(float(trial.user_attrs.get("seconds", 0)) for trial in ledger.ended())
    workers = ledger.blueprint.base.engine.workers
    cards.append(_card("Time of all trials", _duration(seconds), f"{_duration(seconds * workers)} of workers"))
    cards.append(_card("Time of the sweep", _duration(ledger.hours() * 3600), "over all sessions"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(name: str, figure: str, note: str, kind: str = "") -> str:
    return (
        f'<div class="card {kind}"><div class="name">{html.escape(name)}</div><div class="figure">{html.escape(figure)}'
        f"</div><small>{html.escape(note)}</small></div>"
    )


def _best(ledger: Ledger, best: FrozenTrial) -> str:
    path = ledger.blueprint.folder / "best.yaml"
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td><b>{html.escape(_shown(value))}</b></td>"
        f"<td>{html.escape(_shown(ledger.blueprint.base_value(key)))}</td></tr>"
        for key, value in ledger.values(best.number).items()
    )
    table = f"<table><tr><th>key</th><th>best</th><th>base</th></tr>{rows}</table>"
    command = f"<code>python -m urg.train --config {html.escape(str(path))}</code>"
    yaml = f"<summary>best.yaml, the full training with this point: {command}</summary>"
    body = html.escape(path.read_text(encoding="utf-8")) if path.exists() else ""
    return f'<div class="scroll">{table}</div><details>{yaml}<div class="case"><pre>{body}</pre></div></details>'


def _rows(ledger: Ledger) -> tuple[list[str], list[tuple[FrozenTrial, list[str]]]]:
    """(column names, each trial with its cells), the best first."""
    config = ledger.blueprint.config
    keys = ledger.blueprint.space.keys
    spread = [f"± {name}" for name in config.objective] if config.folds else []
    head = ["trial", "end", *config.objective, *spread, "steps", "time", *keys, "note"]

    def order(trial: FrozenTrial) -> tuple[bool, float]:
        values = trial.user_attrs.get("values") or []
        return trial.state.name != "COMPLETE", -values[0] if values else float("inf")

    return head, [(trial, _cells(ledger, trial, keys)) for trial in sorted(ledger.ended(), key=order)]


def _cells(ledger: Ledger, trial: FrozenTrial, keys: Sequence[str]) -> list[str]:
    config, attributes, values = ledger.blueprint.config, trial.user_attrs, ledger.values(trial.number)
    measured = list(attributes.get("values") or [])
    shown = [f"{value:.4f}" for value in measured] + ["–"] * (len(config.objective) - len(measured))
    if config.folds:
        spread = list(attributes.get("spread") or [])
        shown += [f"{value:.4f}" for value in spread] + ["–"] * (len(config.objective) - len(spread))
    cells = [str(trial.number), _STATES[trial.state.name], *shown, str(attributes.get("step") or "–")]
    cells.append(_duration(float(attributes.get("seconds", 0))))
    return [*cells, *(_shown(values[key]) if key in values else "–" for key in keys), attributes.get("reason", "")]


def _table(ledger: Ledger) -> str:
    head, rows = _rows(ledger)
    best = ledger.best()
    titles = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f'<tr class="{"ranker" if best and trial.number == best.number else ""}">'
        + "".join(f'<td title="{html.escape(cell)}">{html.escape(_short(cell))}</td>' for cell in cells)
        + "</tr>"
        for trial, cells in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _settings(ledger: Ledger) -> str:
    """Space and base, as they were given."""
    stored = json.loads((ledger.blueprint.folder / "sweep.json").read_text(encoding="utf-8"))
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in stored.items())
    table = f'<div class="scroll"><table class="facts">{rows}</table></div>'
    return (
        f'<h2>How this was made</h2><details><summary>Space and base</summary><div class="case">{table}</div></details>'
    )


def _values(ledger: Ledger, trial: FrozenTrial) -> str:
    names = ledger.blueprint.config.objective
    return ", ".join(f"{name} {value:.4f}" for name, value in zip(names, trial.values, strict=True))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
