"""A table on its way to a reader: groups of rows of text cells, as plain text, Markdown, LaTeX, HTML or JSON."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NONE = "–"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "Δ": r"$\Delta$", "κ": r"$\kappa$",
    "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "×": r"$\times$",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row: its cells, and the columns of those that are the best."""

    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Group:
    """Rows under a common name ("" for none)."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """A table. spans: a heading above the columns, as (text, number of columns); empty for none."""

    title: str
    head: tuple[str, ...]
    groups: tuple[Group, ...]
    spans: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wide = {len(line.cells) for group in self.groups for line in group.lines} | {len(self.head)}
        wide |= {sum(width for _, width in self.spans)} if self.spans else set()
        if len(wide) != 1:
            raise ValueError(f"{self.title}: rows, head and spans have {sorted(wide)} columns")


def plain(sheet: Sheet) -> str:
    """Aligned text; best cells marked by *."""
    body = [[_starred(line, i) for i in range(len(sheet.head))] for group in sheet.groups for line in group.lines]
    widths = [max(len(cells[column]) for cells in [list(sheet.head), *body]) for column in range(len(sheet.head))]
    texts = [sheet.title, _aligned(sheet.head, widths)]
    rows = iter(body)
    for group in sheet.groups:
        texts += [f"[{group.name}]"] if group.name else []
        texts += [_aligned(next(rows), widths) for _ in group.lines]
    return "\n".join([*texts, *(f"  {note}" for note in sheet.notes)])


def _starred(line: Line, column: int) -> str:
    return line.cells[column] + ("*" if column in line.best else "")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        text.ljust(width) if column == 0 else text.rjust(width)
        for column, (text, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def markdown(sheet: Sheet) -> str:
    """A Markdown table under a heading; best cells bold, groups as rows of their own."""
    width = len(sheet.head)
    head = as_json(sheet)["columns"]
    lines = [
        f"### {escaped_markdown(sheet.title)}",
        "",
        _piped(map(escaped_markdown, head)),
        "|:--|" + "--:|" * (width - 1),
    ]
    for group in sheet.groups:
        if group.name:
            lines.append(_piped([f"**{escaped_markdown(group.name)}**", *[""] * (width - 1)]))
        for line in group.lines:
            cells = [escaped_markdown(text) for text in line.cells]
            lines.append(_piped(f"**{text}**" if i in line.best else text for i, text in enumerate(cells)))
    return "\n".join([*lines, "", *(f"- {escaped_markdown(note)}" for note in sheet.notes)]).rstrip() + "\n"


def _above(sheet: Sheet) -> list[str]:
    """The span above each column."""
    return [text for text, width in sheet.spans for _ in range(width)] or [""] * len(sheet.head)


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def escaped_markdown(text: str) -> str:
    """Text on one line that Markdown and HTML take for text."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def latex(sheet: Sheet) -> str:
    """A LaTeX table with booktabs' rules."""
    columns = "l" + "r" * (len(sheet.head) - 1)
    lines = [r"\begin{table}", rf"\caption{{{_latex(sheet.title)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if sheet.spans:
        lines.append(_tabbed(rf"\multicolumn{{{width}}}{{c}}{{{_latex(text)}}}" for text, width in sheet.spans))
    lines.append(_tabbed(map(_latex, sheet.head)))
    for group in sheet.groups:
        lines.append(r"\midrule")
        if group.name:
            lines.append(rf"\multicolumn{{{len(sheet.head)}}}{{l}}{{\textit{{{_latex(group.name)}}}}} \\")
        for line in group.lines:
            cells = [_latex(text) for text in line.cells]
            lines.append(_tabbed(rf"\textbf{{{text}}}" if i in line.best else text for i, text in enumerate(cells)))
    lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par\small {_latex(note)}" for note in sheet.notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tabbed(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def as_json(sheet: Sheet) -> dict[str, Any]:
    """A table for programs: {title, columns, groups: [{name, rows}], notes}; a column's name has its span before it."""
    columns = [f"{span}: {text}" if span else text for span, text in zip(_above(sheet), sheet.head, strict=True)]
    groups = [{"name": group.name, "rows": [list(line.cells) for line in group.lines]} for group in sheet.groups]
    return {"title": sheet.title, "columns": columns, "groups": groups, "notes": list(sheet.notes)}


def as_html(sheet: Sheet) -> str:
    """A table element in a box that scrolls, with its notes; every text escaped."""
    above = ""
    if sheet.spans:
        parts = (f'<th colspan="{width}" class="span">{html.escape(text)}</th>' for text, width in sheet.spans)
        above = f"<tr>{''.join(parts)}</tr>"
    head = "".join(f"<th>{html.escape(text)}</th>" for text in sheet.head)
    body, spanned = [], list(enumerate(_above(sheet)))
    for group in sheet.groups:
        if group.name:
            body.append(f'<tr class="group"><td colspan="{len(sheet.head)}">{html.escape(group.name)}</td></tr>')
        body += [f"<tr>{''.join(_cell(line, i, above) for i, above in spanned)}</tr>" for line in group.lines]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in sheet.notes)
    listed = f'<ul class="missing soft">{notes}</ul>' if notes else ""
    table = f'<table class="sheet"><thead>{above}<tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="scroll">{table}</div>{listed}'


def _cell(line: Line, column: int, above: str) -> str:
    text = html.escape(line.cells[column])
    shown = f"<b>{text}</b>" if column in line.best else text
    return f'<td class="published">{shown}</td>' if above.startswith("published") else f"<td>{shown}</td>"
