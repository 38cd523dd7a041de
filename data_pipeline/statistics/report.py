"""The page on a set: its figures and its tables, in one file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.page import Figure, bar, document, figure_html, figure_layout, short_name
from data_pipeline.statistics.tables import Table, number, shown, shown_rows, tables

_PALETTE = (
    *("#2f6fdb", "#d97a1f", "#23946b", "#b0413e", "#7a5bc0", "#8c6d46", "#3fa7c9", "#c75b9b"),
    *("#8a9a2b", "#5d6778", "#94b5f0", "#f0bd85", "#7fcdb0", "#dd9694", "#b9a6e3", "#c4ae90"),
)


def report_page(told: Mapping[str, Any]) -> str:
    """The page of `stats.json`'s content."""
    drawn = figures(told)
    sections = [
        _header(told),
        _cards(told),
        _notes(told),
        f'<div class="figures">{"".join(figure_html(i, figure) for i, figure in enumerate(drawn))}</div>',
        *(_table(table) for table in tables(told)),
    ]
    return document(f"Statistics: {told['input']}", "\n".join(filter(None, sections)), bool(drawn))


def _header(told: Mapping[str, Any]) -> str:
    named = told["input"] if isinstance(told["input"], str) else ", ".join(told["input"].values())
    generated = '<span class="badge">generated: simulated models, not the answers of real ones</span>'
    badge = generated if told.get("generated") else ""
    return f'<h1>What the data hold</h1><div class="soft">{html.escape(named)}</div>{badge}'


def _cards(told: Mapping[str, Any]) -> str:
    models = {model for split in told["splits"].values() for model in split["models"]}
    candidates = sum(sum(split["models"].values()) for split in told["splits"].values())
    labels = shown(told)["labels"]
    rejected = sum(told["rejected"].values())
    leaks = sum(count for by in told["duplicates"]["leaks"].values() for count in by.values())
    cards = [
        ("rows", number(told["rows"]), f"{number(rejected)} more rejected"),
        ("candidates", number(candidates), f"of {len(models)} models"),
        ("labels", number(len(labels)), html.escape(", ".join(labels)) or "none"),
        ("leaks between splits", number(leaks), "rows whose prompt is in a later split"),
    ]
    return f'<div class="cards">{"".join(map(_card, cards))}</div>'


def _card(card: tuple[str, str, str]) -> str:
    name, figure, note = card
    return (
        f'<div class="card"><div class="name">{name}</div><div class="figure">{figure}</div><small>{note}</small></div>'
    )


def _notes(told: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{html.escape(remark)}</li>" for remark in told["remarks"])
    return f'<ul class="notes">{items}</ul>' if items else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.body)
    return (
        f'<h2>{html.escape(table.title)}</h2><p class="soft">{html.escape(table.note)}</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def figures(told: Mapping[str, Any]) -> list[Figure]:
    """Every figure that the statistics allow."""
    label = told["shown_label"]
    found = [_pie(told, label), _means(told, label)] if label else []
    found += [_best_by_label(told)] if len(shown(told)["labels"]) > 1 else []
    found += [_agreement(told)] if shown(told)["correlation"] else []
    return [*found, _length_shares(told)]


def _pie(told: Mapping[str, Any], label: str) -> Figure:
    models = shown(told)["labels"][label]["models"]
    shares = sorted(((told.get("best_share", 0.0), name) for name, told in models.items()), reverse=True)
    slices: dict[str, Any] = {"type": "pie", "sort": False, "direction": "clockwise", "hole": 0.45}
    slices |= {"labels": [short_name(name) for _, name in shares], "values": [share for share, _ in shares]}
    slices |= {"marker": {"colors": list(_PALETTE), "line": {"color": "--card", "width": 1}}}
    slices |= {"texttemplate": "%{percent:.0%}", "textposition": "inside", "insidetextorientation": "horizontal"}
    slices |= {"hovertemplate": "%{label}: %{percent}<extra></extra>"}
    layout = figure_layout("", "", height=420) | {"legend": {"font": {"size": 12}}, "margin": _PIE_MARGIN}
    layout |= {"uniformtext": {"minsize": 10, "mode": "hide"}}
    return Figure(
        "The best model differs from row to row",
        f"Share of {shown_rows(told)} in which each model has the best {label}; ties are shared.",
        [slices],
        layout,
    )


_PIE_MARGIN = {"l": 8, "r": 8, "t": 16, "b": 16}


def _means(told: Mapping[str, Any], label: str) -> Figure:
    models = {name: told for name, told in shown(told)["labels"][label]["models"].items() if "mean" in told}
    names = sorted(models, key=lambda name: models[name]["mean"])
    drawn = bar(label, [short_name(name) for name in names], [models[name]["mean"] for name in names], "--accent")
    drawn |= {"hovertemplate": "%{y}: %{x:.4f}<extra></extra>"}
    return Figure(
        "Mean quality by model",
        f"Mean {label} of {shown_rows(told)}.",
        [drawn],
        figure_layout(html.escape(label), "", height=max(420, 110 + 28 * len(names)), left=True),
    )


def _best_by_label(told: Mapping[str, Any]) -> Figure:
    labels, models = shown(told)["labels"], list(shown(told)["models"])
    shares = [
        [_percent(labels[label]["models"].get(model, {}).get("best_share")) for label in labels] for model in models
    ]
    return Figure(
        "Who is best depends on the label",
        f"Percent of {shown_rows(told)} in which a model has the best of each label.",
        [_heat(shares, list(labels), [short_name(name) for name in models], "%{z:.0f}") | {"zmin": 0}],
        _heat_layout(len(models)),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _agreement(told: Mapping[str, Any]) -> Figure:
    pairs = shown(told)["correlation"]
    names = sorted({name for pair in pairs for name in pair.split(",")})
    values: list[list[float | None]] = [
        [1.0 if a == b else (pairs.get(f"{min(a, b)},{max(a, b)}") or {}).get("spearman") for b in names] for a in names
    ]
    return Figure(
        "Do labels agree?",
        "Rank correlation (Spearman) of two labels among the candidates of a row, mean over rows.",
        [_heat(values, names, [html.escape(name) for name in names], "%{z:.2f}") | {"zmin": -1, "zmax": 1}],
        _heat_layout(len(names)),
    )


def _heat(values: Sequence[Sequence[float | None]], x: list[str], y: list[str], text: str) -> dict[str, Any]:
    scale = [[0, "--card"], [1, "--accent"]]
    drawn: dict[str, Any] = {"type": "heatmap", "z": values, "x": [html.escape(name) for name in x], "y": y}
    drawn |= {"colorscale": scale, "showscale": False, "texttemplate": text, "xgap": 1, "ygap": 1}
    return drawn | {"hovertemplate": "%{y}, %{x}: %{z}<extra></extra>", "hoverongaps": False}


def _heat_layout(rows: int) -> dict[str, Any]:
    layout = figure_layout("", "", height=max(340, 130 + 26 * rows), left=True)
    layout["xaxis"] = layout["xaxis"] | {"tickangle": -35, "showgrid": False}
    layout["yaxis"] = layout["yaxis"] | {"autorange": "reversed"}
    return layout


def _length_shares(told: Mapping[str, Any]) -> Figure:
    lines = []
    for kind, colour in (("question", "--second"), ("candidate", "--accent"), ("reference", "--third")):
        at = shown(told)["length_quantiles"][kind]
        if at:
            line = {"color": colour, "width": 2}
            y = [100 * share for share in at["shares"]]
            lines.append({"type": "scatter", "mode": "lines", "name": kind, "x": at["lengths"], "y": y, "line": line})
    layout = figure_layout(told["unit"], "% of texts no longer", height=420)
    ticks = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    layout["xaxis"] = layout["xaxis"] | {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    return Figure(
        "Lengths",
        f"Percent of the texts of {shown_rows(told)} that are no longer than so many {told['unit']}.",
        lines,
        layout | {"legend": {"x": 0.02, "y": 0.98}},
    )
