"""The figures of a sweep's report: Optuna's own, in the colours of our pages, and those that Optuna does not have.

A colour that begins with -- is a variable of the page's style sheet.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_pipeline.page import Figure
from tuning.blueprint import trial_name
from urg.training.evaluations import read_evaluations

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from tuning.ledger import Ledger

CONTOURS = 6
"""Parameters, the most important ones, of which every pair gets a contour."""
FEW = 2
"""Trials for each parameter, below which nothing is said of what matters."""
_SCALE = [[0.0, "#a9bede"], [0.5, "#3f77cf"], [1.0, "#e0762f"]]
"""From low to high, on a light page and on a dark one; the low end of Optuna's own is white."""
_COLOURS = {"COMPLETE": "--accent", "PRUNED": "--third", "FAIL": "--second"}
_LABELS = {"COMPLETE": "finished", "PRUNED": "ended early", "FAIL": "failed"}


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    note: str = ""
    """What to know of them, or why there is none."""
    wide: bool = False
    """Each takes the whole width."""


def sections(ledger: Ledger) -> list[Section]:
    """All figures that the trials allow."""
    found = []
    for index, name in enumerate(ledger.blueprint.config.objective):
        found += _of_objective(ledger, index, name)
    if len(ledger.blueprint.config.objective) > 1:
        found.insert(0, _pareto(ledger))
    return [*found, _curves(ledger), _cost(ledger)]


def comparable(ledger: Ledger) -> tuple[Study, str]:
    """A study in which trials compare, and which of their values it holds.

    Where some were ended early, the values are those of the last step that every trial has reached: the few that went
    to their end are no sample of the space.
    """
    import optuna

    reached = [trial for trial in ledger.ended() if trial.state.name != "FAIL"]
    shared = set.intersection(*(set(trial.intermediate_values) for trial in reached)) if reached else set()
    if not shared or all(trial.state.name == "COMPLETE" for trial in reached):
        return ledger.study, "finished trials"
    step = max(shared)
    study = optuna.create_study(direction="maximize", study_name=ledger.study.study_name)
    study.add_trials([
        optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, value=trial.intermediate_values[step]
        )
        for trial in reached
    ])  # fmt: skip
    return study, f"all trials at step {step}, the last that each of them reached"


def importances(ledger: Ledger, index: int = 0) -> dict[str, float]:
    """Share of an objective's variance by parameter, the largest first; {} where there are too few trials for it."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    study, _ = comparable(ledger)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(trials) < FEW * max((len(trial.params) for trial in trials), default=1):
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = FanovaImportanceEvaluator(seed=0)
            return dict(get_param_importances(study, evaluator=evaluator, target=_target(ledger, index)))
    except (ValueError, RuntimeError):
        return {}


def _of_objective(ledger: Ledger, index: int, name: str) -> list[Section]:
    from optuna import visualization

    study, which = comparable(ledger)
    options: dict[str, Any] = {"target_name": name, "target": _target(ledger, index)}
    weights = importances(ledger, index)
    keys = list(weights) or sorted({key for trial in study.get_trials(deepcopy=False) for key in trial.params})
    pairs = list(itertools.combinations(keys[:CONTOURS], 2))

    def drawn(title: str, explanation: str, plot: Callable[..., Any], *keys: str, of: Study = study) -> list[Figure]:
        chosen = {"params": list(keys)} if keys else {}
        return _tried(title, explanation, lambda: plot(of, **chosen, **options))

    finished = "Each trial that went to its end, and the best so far."
    history = drawn("History", finished, visualization.plot_optimization_history, of=ledger.study)
    lines = drawn("Parallel coordinates", f"A line for each; {which}.", visualization.plot_parallel_coordinate)
    slices = [figure for key in keys for figure in drawn(key, "", visualization.plot_slice, key)]
    contours = [f for x, y in pairs for f in drawn(f"{x} and {y}", "", visualization.plot_contour, x, y)]
    too_few = f"What matters cannot be said of fewer than {FEW} trials for each parameter."
    most = f"; the {CONTOURS} parameters that matter most" if len(keys) > CONTOURS else ""
    return [
        Section(f"Search for {name}", [*history, *_importance(weights, which)], "" if weights else too_few),
        Section(f"{name} by parameters together", lines, wide=True),
        Section(f"{name} by parameter", slices, f"Orange: a later trial; {which}."),
        Section(f"{name} by pair of parameters", contours, f"Of {which}{most}."),
    ]


def _target(ledger: Ledger, index: int) -> Callable[[FrozenTrial], float] | None:
    """What Optuna plots; None, for the only objective, lets it know that more is better."""
    return None if len(ledger.blueprint.config.objective) == 1 else lambda trial: float(trial.values[index])


def _finished(ledger: Ledger) -> list[FrozenTrial]:
    return [trial for trial in ledger.ended() if trial.state.name == "COMPLETE"]


def _tried(title: str, explanation: str, draw: Callable[[], Any]) -> list[Figure]:
    """Optuna's figure; none where it has too few trials for it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = json.loads(draw().to_json())
    except (ValueError, RuntimeError, KeyError):
        return []
    if not drawn["data"]:
        return []
    return [Figure(title, explanation, [_visible(trace) for trace in drawn["data"]], _themed(drawn["layout"]))]


def _visible(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace of Optuna's whose points and lines are seen on the page, whatever their value."""
    if trace["type"] == "parcoords":
        return trace | {"line": trace["line"] | {"colorscale": _SCALE, "reversescale": False}}
    if trace["type"] == "scatter" and "colorscale" in trace.get("marker", {}):
        return trace | {"marker": trace["marker"] | {"colorscale": _SCALE, "size": 8, "line": {"width": 0}}}
    return trace


def _themed(layout: dict[str, Any], height: int = 360) -> dict[str, Any]:
    """A layout in the page's colours, without a title of its own."""
    kept = {key: value for key, value in layout.items() if key not in ("template", "title", "width", "height")}
    axis = {"gridcolor": "--line", "zerolinecolor": "--line", "linecolor": "--line", "automargin": True}
    for key in {key for key in kept if key.startswith(("xaxis", "yaxis"))} | {"xaxis", "yaxis"}:
        kept[key] = {**axis, **kept.get(key, {})}
    return kept | {
        "autosize": True,
        "height": height,
        "margin": {"l": 64, "r": 24, "t": 40, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--text", "family": "system-ui, sans-serif", "size": 12.5},
    }


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def _importance(weights: dict[str, float], which: str) -> list[Figure]:
    if not weights:
        return []
    explanation = f"Share of the objective's variance that a parameter explains (fANOVA), over {which}."
    names = list(weights)[::-1]
    bar: dict[str, Any] = {"type": "bar", "orientation": "h", "y": names, "x": [weights[name] for name in names]}
    bar |= {"marker": {"color": "--accent"}, "hovertemplate": "%{y}: %{x:.2f}<extra></extra>"}
    layout = _themed(_axes("share", "")) | {"margin": {"l": 10, "r": 24, "t": 20, "b": 52}}
    return [Figure("What matters", explanation, [bar], layout)]


def _pareto(ledger: Ledger) -> Section:
    """The trials that no other beats in every objective, in the first two."""
    names, best = ledger.blueprint.config.objective, {trial.number for trial in ledger.study.best_trials}
    data = []
    for label, inside, colour in (("others", False, "--soft"), ("Pareto front", True, "--accent")):
        trials = sorted((t for t in _finished(ledger) if (t.number in best) is inside), key=lambda t: t.values[0])
        point: dict[str, Any] = {"type": "scatter", "name": label, "mode": "lines+markers" if inside else "markers"}
        point |= {"x": [t.values[0] for t in trials], "y": [t.values[1] for t in trials]}
        point |= {"text": [f"trial {t.number}" for t in trials], "marker": {"color": colour, "size": 9}}
        data.append(point | {"line": {"color": colour, "width": 1, "dash": "dot"}})
    note = "Right and up is better; no trial beats one of the front in every objective."
    return Section("Objectives together", [Figure("Pareto front", note, data, _themed(_axes(names[0], names[1])))])


def _curves(ledger: Ledger) -> Section:
    """The first objective over the steps of every run, the best trial in front."""
    blueprint, best, lines = ledger.blueprint, ledger.best(), []
    name = blueprint.config.objective[0]
    for trial in sorted(ledger.ended(), key=lambda trial: best is not None and trial.number == best.number):
        ours = best is not None and trial.number == best.number
        for unit in blueprint.units(trial.number):
            points = [
                (e.step, e.metrics[name])
                for e in read_evaluations(blueprint.trials_folder / unit.name)
                if name in e.metrics
            ]
            line: dict[str, Any] = {
                "type": "scatter",
                "mode": "lines+markers",
                "name": unit.name.replace("-", " "),
                "opacity": 1 if ours else 0.55,
            }
            line |= {"x": [step for step, _ in points], "y": [value for _, value in points], "showlegend": ours}
            colour = "--accent" if ours else "--third" if trial.state.name == "PRUNED" else "--soft"
            line |= {"line": {"color": colour, "width": 3 if ours else 1.2}, "marker": {"size": 7 if ours else 4}}
            if points:
                lines.append(line)
    note = "Blue: the best trial. Green: ended early. Grey: the others."
    figure = Figure(f"Dev {name} while training", note, lines, _themed(_axes("step", name), 420))
    return Section("Learning curves", [figure] if lines else [], "" if lines else "No run was evaluated.", wide=True)


def _cost(ledger: Ledger) -> Section:
    """Minutes of every trial, by how it ended."""
    bars = []
    for state, label in _LABELS.items():
        trials = [trial for trial in ledger.ended() if trial.state.name == state]
        if trials:
            bar: dict[str, Any] = {"type": "bar", "name": label, "x": [trial.number for trial in trials]}
            bar |= {"y": [float(trial.user_attrs.get("seconds", 0)) / 60 for trial in trials]}
            bar |= {
                "text": [trial_name(t.number) for t in trials],
                "textposition": "none",
                "marker": {"color": _COLOURS[state]},
            }
            bars.append(bar)
    note = "Starting Ray Train, the model and DeepSpeed included; of folds the sum."
    layout = _themed(_axes("trial", "minutes"), 320) | {"barmode": "stack", "showlegend": len(bars) > 1}
    return Section("Cost", [Figure("Minutes by trial", note, bars, layout)] if bars else [], wide=True)
