"""What a reproduction took: minutes by command, and the minutes in which at least one of its steps was under way."""

from __future__ import annotations

from collections.abc import Iterable

from tuning.reproduction.results import Results
from tuning.reproduction.steps import Ending
from urg.evaluation.sheet import Group, Line, Sheet


def time_taken(results: Results) -> Sheet:
    """A line for each command, with the number of its steps that are done and their minutes; a note on the whole."""
    by_command: dict[str, list[Ending]] = {}
    for name, step in results.recipe.steps.items():
        if results.done(name):
            by_command.setdefault(step.command[0], []).append(results.endings[name])
    lines = []
    for command, endings in by_command.items():
        seconds = [ending.seconds for ending in endings]
        lines.append(Line((command, str(len(seconds)), f"{sum(seconds) / 60:.1f}", f"{max(seconds):.0f}")))
    done = [ending for endings in by_command.values() for ending in endings]
    told = (
        f"{len(done)} of {len(results.recipe.steps)} steps are done, {results.recipe.at_once} at once, in "
        f"{busy_seconds(done) / 60:.1f} minutes with at least one under way, over all sessions."
    )
    head = ("command", "steps", "minutes in all", "longest: seconds")
    return Sheet("Minutes by command", head, (Group("", tuple(lines)),), notes=(told,))


def busy_seconds(endings: Iterable[Ending]) -> float:
    """Seconds in which at least one step was under way: steps side by side count once, pauses do not count."""
    total, until = 0.0, 0.0
    for begin, end in sorted((ending.began, ending.began + ending.seconds) for ending in endings):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
