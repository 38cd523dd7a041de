"""Table 8 of the URG paper: some rows with every candidate, every system's answer and the reference, to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from urg.evaluation.config import EvaluateConfig
from urg.evaluation.report_cases import cases_html, choose_cases

if TYPE_CHECKING:
    from urg.evaluation.answering import Load
    from urg.evaluation.comparison import Comparison
    from urg.evaluation.results import Provenance


def run_cases(config: EvaluateConfig, output: Path, load: Load | None = None) -> Comparison:
    """Run the systems (or take their kept answers), write cases.md and cases.html with `config.cases` rows."""
    from data_pipeline.page import document
    from urg.evaluate import compare_systems
    from urg.evaluation.results import write_text
    from urg.evaluation.subject import open_subject

    if not config.cases:
        raise UserError("cases=0 leaves nothing to export; say by --cases how many rows to show")
    subject = open_subject(config)
    comparison = compare_systems(subject, output, load)
    title = f"Cases: {subject.provenance.title}"
    write_text(output / "cases.md", cases_markdown(comparison, subject.provenance, config.cases))
    body = f"<h1>Cases</h1>{cases_html(comparison, config.cases)}"
    write_text(output / "cases.html", document(title, body, has_figures=False))
    print(f"cases     {output / 'cases.md'}\n          file://{output / 'cases.html'}")
    return comparison


def cases_markdown(comparison: Comparison, provenance: Provenance, count: int) -> str:
    """The cases as Markdown; texts stand in quotes, so that nothing in them is taken for markup."""
    parts = [f"# Cases: {provenance.title}\n"]
    for index, why in choose_cases(comparison, count):
        row = comparison.rows[index]
        parts.append(f"## {_plain(row.id)} ({why})\n")
        parts.append(_quoted("Question", f"{row.instruction}\n{row.input}".strip()))
        answers = [(r.name, r.kind, r.answers[index]) for r in comparison.results]
        for name, _, answer in (found for found in answers if found[1] == "model"):
            parts += [] if answer is None else [_quoted(name, answer.text)]
        for name, _, answer in (found for found in answers if found[1] != "model"):
            if answer is not None and answer.picked is not None:
                parts.append(f"**{_plain(name)}** picks {_plain(row.models[answer.picked])}\n")
            elif answer is not None:
                used = _listed([row.models[i] for i in answer.used])
                parts.append(_quoted(f"{name}{f' (from {used})' if used else ''}", answer.text))
        if row.output.strip():
            parts.append(_quoted("Reference", row.output))
    return "\n".join(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _quoted(name: str, text: str) -> str:
    """A name and a text in a block that no text can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"**{_plain(name)}**\n\n{fence}text\n{text}\n{fence}\n"


def _plain(text: str) -> str:
    from urg.evaluation.sheet import escaped_markdown

    return escaped_markdown(text)
