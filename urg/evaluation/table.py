"""The table of systems and metrics: its columns, its cells, which cell is best, and how a terminal shows it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from urg.evaluation.comparison import LOWER_IS_BETTER, METRICS, WIDE_COVERAGE, Comparison, Gap, Result
from urg.evaluation.judge import JUDGE_METRICS

if TYPE_CHECKING:
    from rich.table import Table

NONE = "–"


def columns(comparison: Comparison) -> list[str]:
    """The metrics that at least one system has, in table order."""
    return [metric for metric in METRICS if any(metric in result.means for result in comparison.results)]


def heading(metric: str, comparison: Comparison) -> str:
    """How a metric's column is headed: the label by its own name."""
    return f"label: {comparison.label}" if metric == "label" else metric


def cell(result: Result, metric: str) -> str:
    """A mean as text: four decimals, two for BLEU and the judge's (0..100), – where it is missing."""
    value = result.means.get(metric)
    if value is None:
        return NONE
    return number(metric, value)


def number(metric: str, value: float) -> str:
    """A value of a metric as text."""
    if metric in ("bleu", "corpus_bleu", *JUDGE_METRICS):
        return f"{value:.2f}"
    return f"{value:.2e}" if 0 < abs(value) < 5e-4 else f"{value:.4f}"


def best(comparison: Comparison) -> set[tuple[str, str]]:
    """(system, metric) of the best shown value of each column (several where they tie).

    The oracle is a ceiling and a system without many of the rows is not comparable: neither can be the best.
    """
    marked = set()
    for metric in columns(comparison):
        having = [r for r in comparison.results if r.kind != "ceiling" and metric in r.means]
        full = widely_covered(having, metric)
        choose = min if metric in LOWER_IS_BETTER else max
        top = choose((result.means[metric] for result in full), default=None)
        if top is not None:
            shown = next(cell(result, metric) for result in full if result.means[metric] == top)
            marked |= {(result.name, metric) for result in full if cell(result, metric) == shown}
    return marked


def widely_covered(results: Sequence[Result], metric: str) -> list[Result]:
    """Those that have the metric in about as many rows as the one that has most: the others are not comparable."""
    widest = max((result.counts[metric] for result in results), default=0)
    return [result for result in results if result.counts[metric] >= WIDE_COVERAGE * widest]


def print_table(comparison: Comparison, title: str, out: TextIO | None = None) -> None:
    """Print the table: with rich on a terminal, best in bold; as aligned text elsewhere, best marked by *."""
    from rich.console import Console

    console = Console(file=out or sys.stdout)
    if not console.is_terminal:
        print(plain_table(comparison, title), file=out or sys.stdout)
        return
    console.print(f"[bold]{_escaped(title)}[/bold]", highlight=False)
    for block in _blocks(comparison, console.width):
        console.print(_rich_table(comparison, block))


def plain_table(comparison: Comparison, title: str) -> str:
    """The table as text, columns aligned, best value of a column marked by *."""
    marked, metrics = best(comparison), columns(comparison)
    head = ["system", "rows", *(heading(metric, comparison) for metric in metrics)]
    body = [
        [r.name, str(r.rows), *(cell(r, m) + ("*" if (r.name, m) in marked else " ") for m in metrics)]
        for r in comparison.results
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) if column == 0 else text.rjust(width) for column, (text, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in [head, *body])
    ]
    return "\n".join([title, *(line.rstrip() for line in lines)])


def gap_sentence(gap: Gap, comparison: Comparison) -> str:
    """Best single model → oracle on one metric, and how much of that gap URG closes, as a sentence."""
    ends = f"best model {gap.best_model} {gap.means[gap.best_model]:.4f}, oracle {gap.means['oracle']:.4f}"
    shares = [f"{name} {gap.means[name]:.4f} closes {share:.0%}" for name, share in gap.closed.items()]
    ours = "; ".join(shares) or "no share of the gap can be given"
    return f"gap on {heading(gap.metric, comparison)}, {gap.rows} rows: {ends}; {ours}"


def _blocks(comparison: Comparison, width: int) -> list[list[str]]:
    """The columns cut into blocks that fit the terminal's width side by side with the systems' names."""
    names = max((len(result.name) for result in comparison.results), default=6)
    room = max(width - names - 12, 20)
    blocks: list[list[str]] = [[]]
    used = 0
    for metric in columns(comparison):
        size = max(len(heading(metric, comparison)), 7) + 3
        if blocks[-1] and used + size > room:
            blocks.append([])
            used = 0
        blocks[-1].append(metric)
        used += size
    return blocks


def _rich_table(comparison: Comparison, metrics: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    marked = best(comparison)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("system", no_wrap=True)
    table.add_column("rows", justify="right")
    for metric in metrics:
        table.add_column(_escaped(heading(metric, comparison)), justify="right", no_wrap=True)
    previous = None
    for result in comparison.results:
        if previous not in (None, result.kind):
            table.add_section()
        previous = result.kind
        cells = [_marked(cell(result, m), (result.name, m) in marked) for m in metrics]
        style = "dim" if result.kind == "ceiling" else None
        table.add_row(_escaped(result.name), str(result.rows), *cells, style=style)
    return table


def _marked(text: str, is_best: bool) -> str:
    return f"[bold]{text}[/bold]" if is_best else text


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
