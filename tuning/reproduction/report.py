"""The report of a reproduction: one HTML page that works offline, the same as Markdown, and as JSON for programs."""

from __future__ import annotations

import html
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.page import Figure, document, figure_html
from tuning.reproduction.claims import HELD, NOT_HELD, RULE, Verdict, verdicts
from tuning.reproduction.experiments import EXPERIMENTS, Experiment, Shown
from tuning.reproduction.results import Results
from tuning.reproduction.run_with import run_with
from tuning.reproduction.time_taken import time_taken
from urg.evaluation.results import write_json, write_text
from urg.evaluation.sheet import Sheet, as_html, as_json, escaped_markdown, markdown

GENERATED = "Generated data and simulated models: no figure here says anything of real ones."
CLAIMED = "The paper's claims, each by the preset's recipe and by the paper's"
_BADGES = {HELD: "--third", NOT_HELD: "--second"}


@dataclass(frozen=True)
class Part:
    """An experiment's part of the report: what it shows, or why it shows nothing."""

    name: str
    title: str
    shown: tuple[Shown, ...]
    missing: str | None


def parts(results: Results, needs: Mapping[str, Sequence[str]], asked: Collection[str] = EXPERIMENTS) -> list[Part]:
    """What it was run with, every experiment whose steps are done, and what it took. needs: the steps of each that can
    be run. asked: those of this session."""
    found = [_part(name, one, results, needs.get(name), name in asked) for name, one in EXPERIMENTS.items()]
    first = Part("run_with", "What it was run with", (run_with(results),), None)
    return [first, *found, Part("time", "What it took", (time_taken(results),), None)]


def _part(name: str, experiment: Experiment, results: Results, needs: Sequence[str] | None, asked: bool) -> Part:
    missing = "not asked for" if needs is None else results.why_not(needs)
    if missing and not asked:
        missing = "not asked for"
    return Part(name, experiment.title, () if missing else tuple(experiment.show(results)), missing)


def write_report(results: Results, needs: Mapping[str, Sequence[str]], asked: Collection[str] = EXPERIMENTS) -> Path:
    """Write report.html, report.md and report.json into the reproduction's folder; the path of the first."""
    root, found, claims = results.recipe.root, parts(results, needs, asked), verdicts(results)
    title = f"Reproduction {results.recipe.config.name}, preset {Path(results.recipe.config.preset).stem}"
    write_text(root / "report.html", page(title, found, claims, results.generated))
    write_text(root / "report.md", text(title, found, claims, results.generated))
    write_json(root / "report.json", _document(title, found, claims, results.generated))
    return root / "report.html"


def page(title: str, found: Sequence[Part], claims: Sequence[Verdict], generated: bool) -> str:
    """The page. Every text is escaped."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [f'<div class="badge">GENERATED DATA</div><p class="soft">{GENERATED}</p>'] if generated else []
    body += [f"<h2>{CLAIMED}</h2>", _claims_html(claims), f'<p class="soft">{html.escape(RULE)}</p>']
    numbers = itertools.count()
    for part in found:
        body.append(f"<h2>{html.escape(part.title)}</h2>")
        body += [f'<p class="soft">Missing: {html.escape(part.missing)}</p>'] if part.missing else []
        body += [_html(shown, numbers) for shown in part.shown]
    drawn = any(isinstance(shown, Figure) for part in found for shown in part.shown)
    return document(title, "\n".join(body), has_figures=drawn)


def _claims_html(claims: Sequence[Verdict]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(each.claim)}</td><td>{html.escape(each.recipe)}</td>"
        f'<td style="color: var({_BADGES.get(each.verdict, "--soft")})">'
        f"<strong>{each.verdict}</strong></td><td>{html.escape(each.evidence)}</td></tr>"
        for each in claims
    )
    head = "<tr><th>claim</th><th>by the recipe</th><th>here</th><th>evidence</th></tr>"
    return f'<div class="scroll"><table class="facts">{head}{rows}</table></div>'


def _html(shown: Shown, numbers: itertools.count[int]) -> str:
    if isinstance(shown, Sheet):
        return f"<h3>{html.escape(shown.title)}</h3>{as_html(shown)}"
    if isinstance(shown, Figure):
        return f'<div class="figures">{figure_html(next(numbers), shown)}</div>'
    return f"<p>{html.escape(shown)}</p>"


def text(title: str, found: Sequence[Part], claims: Sequence[Verdict], generated: bool) -> str:
    """The same as Markdown, without plots: their figures stand in tables."""
    lines = [f"# {escaped_markdown(title)}", ""]
    lines += [f"**{GENERATED}**", ""] if generated else []
    lines += [f"## {CLAIMED}", "", "| claim | by the recipe | here | evidence |", "|:--|:--|:--|:--|"]
    lines += [
        f"| {each.claim} | {escaped_markdown(each.recipe)} | **{each.verdict}** | {escaped_markdown(each.evidence)} |"
        for each in claims
    ]
    lines += ["", escaped_markdown(RULE)]
    for part in found:
        lines += ["", f"## {escaped_markdown(part.title)}", ""]
        lines += [f"Missing: {escaped_markdown(part.missing)}"] if part.missing else []
        lines += [_markdown(shown) for shown in part.shown if not isinstance(shown, Figure)]
    return "\n".join(lines) + "\n"


def _markdown(shown: Sheet | str) -> str:
    return markdown(shown) if isinstance(shown, Sheet) else f"{escaped_markdown(shown)}\n"


def _document(title: str, found: Sequence[Part], claims: Sequence[Verdict], generated: bool) -> dict[str, Any]:
    experiments = {
        part.name: {
            "title": part.title,
            "missing": part.missing,
            "tables": [as_json(shown) for shown in part.shown if isinstance(shown, Sheet)],
        }
        for part in found
    }
    told = [asdict(claim) for claim in claims]
    return {"title": title, "generated_data": generated, "claims": told, "rule": RULE, "experiments": experiments}
