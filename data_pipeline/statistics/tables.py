"""The statistics as tables of text cells, for the terminal and for the page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from data_pipeline.statistics.rows import ALL
from data_pipeline.statistics.tally import KINDS

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A title, what to know of it, and its cells; the first column is text, the others are numbers."""

    title: str
    note: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def tables(document: Mapping[str, Any]) -> list[Table]:
    """Every table that the statistics allow."""
    makers = (_splits, _sources, _lengths, _models, _best, _scores, _correlation, _differences)
    return [table for table in (make(document) for make in makers) if table.body]


def _splits(document: Mapping[str, Any]) -> Table:
    body = []
    within, leaks = document["duplicates"]["prompts_within"], document["duplicates"]["leaks"]
    for name, split in document["splits"].items():
        shared = ", ".join(f"{later} {count:,}" for later, count in leaks.get(name, {}).items())
        counts = split["candidates"]
        answers = number(counts["min"]) if counts["min"] == counts["max"] else f"{counts['min']}–{counts['max']}"
        identical = number(split["identical_candidates"]["candidates"])
        row = [number(split["rows"]), answers, number(len(split["models"])), number(split["rows_without_reference"])]
        body.append([name, *row, identical, number(split["empty_candidates"]), number(within[name]), shared or "0"])
    head = ["split", "rows", "candidates a row", "models", "no reference", "identical", "empty", "prompts twice"]
    note = (
        "Identical: candidates with the text of an earlier one of the row. Leaks: rows whose prompt a later split has."
    )
    return Table("Rows", note, [*head, "leaks into"], body)


def _sources(document: Mapping[str, Any]) -> Table:
    unit = document["unit"]
    body = []
    splits = list(document["splits"])
    for name, source in sorted(document["sources"].items(), key=lambda item: -item[1]["rows"]):
        counts = [number(source["rows_by_split"].get(split, 0)) for split in splits] if len(splits) > 1 else []
        body.append([name, number(source["rows"]), *counts, *(number(source["mean_length"][kind]) for kind in KINDS)])
    head = ["source", "rows", *(splits if len(splits) > 1 else []), *KINDS]
    return Table("Sources", f"What stands before / in the ids. Lengths: mean {unit}.", head, body)


def _lengths(document: Mapping[str, Any]) -> Table:
    body = []
    for name, split in document["splits"].items():
        for kind in KINDS:
            told = split["lengths"][kind]
            cells = [number(told.get(key)) for key in ("count", "mean", "median", "p95", "max")]
            cut = split["truncated"][kind] if split["truncated"] else None
            body.append([f"{name} {kind}", *cells, *([number(cut["limit"]), f"{cut['share']:.1%}"] if cut else [])])
    head = ["texts", "count", "mean", "median", "95th", "max"]
    cut_head = ["kept", "truncated"] if document["tokenizer"] else []
    note = f"In {document['unit']}." + (
        "" if document["tokenizer"] else " With --tokenizer: in tokens, and truncation."
    )
    return Table("Lengths", note, [*head, *cut_head], body)


def _models(document: Mapping[str, Any]) -> Table:
    labels = shown(document)["labels"]
    body = [
        [model, number(count), *(score(_of(label, model).get("mean"), label) for label in labels.values())]
        for model, count in shown(document)["models"].items()
    ]
    body.append(["oracle", "", *(score(label["oracle_mean"], label) for label in labels.values())])
    note = f"Means of {shown_rows(document)}; oracle: of each row's best."
    return Table("Mean quality by model", note, ["model", "candidates", *labels], body if labels else [])


def _best(document: Mapping[str, Any]) -> Table:
    labels = shown(document)["labels"]
    body = [
        [model, *(percent(_of(label, model).get("best_share")) for label in labels.values())]
        for model in shown(document)["models"]
    ]
    note = f"Percent of {shown_rows(document)}, of those with the label; ties are shared."
    return Table("How often each model is best", note, ["model", *labels], body if labels else [])


def _scores(document: Mapping[str, Any]) -> Table:
    body = [
        [f"{name} {label}", *(number(told[key]) for key in ("rows", "values", "missing", "zeros_taken_as_missing"))]
        for name, split in document["splits"].items()
        for label, told in split["labels"].items()
    ]
    note = "Zeros: exact 0.0 of a log-scale score, which nobody computed; they count as missing."
    return Table("Scores that are there, and missing", note, ["score", "rows", "values", "missing", "zeros"], body)


def _correlation(document: Mapping[str, Any]) -> Table:
    body = [
        [pair.replace(",", " ~ "), number(told["rows"]), signed(told["spearman"]), signed(told["pearson"])]
        for pair, told in shown(document)["correlation"].items()
    ]
    note = (
        f"Spearman: among the candidates of a row, mean over {shown_rows(document)} in which every candidate has both "
        "and neither is constant. Pearson: over all those candidates together."
    )
    return Table("Do labels agree?", note, ["labels", "rows", "Spearman", "Pearson"], body)


def _differences(document: Mapping[str, Any]) -> Table:
    published = document.get("published", {"differing": [], "verdict": ""})
    entries = sorted(published["differing"], key=lambda entry: -abs(entry["ours"] - entry["published"]))
    body = [
        [f"{entry['model']} {entry['label']}", f"{entry['published']:.4f}", f"{entry['ours']:.4f}"] for entry in entries
    ]
    return Table("Where it differs from the published card", published["verdict"], ["mean", "published", "here"], body)


def shown(document: Mapping[str, Any]) -> dict[str, Any]:
    """The split whose models and labels are shown."""
    return document["splits"][document["shown_split"]]  # type: ignore[no-any-return]


def shown_rows(document: Mapping[str, Any]) -> str:
    """How a sentence names the rows that are shown."""
    return "all rows" if document["shown_split"] == ALL else f"the {document['shown_split']} rows"


def _of(label: Mapping[str, Any], model: str) -> dict[str, Any]:
    return label["models"].get(model, {})  # type: ignore[no-any-return]


def number(value: float | None) -> str:
    """A count with thousands apart, a mean with four digits that tell; – where there is none."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def score(value: float | None, label: Mapping[str, Any]) -> str:
    """A mean of one label, all with the same decimals: four, two where they go beyond 5; – where there is none."""
    means = [abs(told["mean"]) for told in label["models"].values() if "mean" in told]
    return NONE if value is None else f"{value:,.2f}" if max(means, default=0.0) > 5 else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share as percent."""
    return NONE if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A correlation."""
    return NONE if value is None else f"{value:+.3f}"


def print_tables(found: Sequence[Table], out: TextIO | None = None) -> None:
    """Print tables: with rich on a terminal, as aligned text elsewhere."""
    from rich.console import Console

    console = Console(file=out or sys.stdout)
    for table in found:
        if console.is_terminal:
            console.print(_rich(table))
        else:
            print(plain(table), file=out or sys.stdout)


def plain(table: Table) -> str:
    """A table as text, columns aligned."""
    lines = [table.head, *table.body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    aligned = (
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )
    return "\n".join([f"{table.title}: {table.note}", *(line.rstrip() for line in aligned), ""])


def _rich(table: Table) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    made = RichTable(
        title=escape(table.title),
        caption=escape(table.note),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for column, name in enumerate(table.head):
        made.add_column(escape(name), justify="right" if column else "left", overflow="fold")
    for row in table.body:
        made.add_row(*map(escape, row))
    return made
