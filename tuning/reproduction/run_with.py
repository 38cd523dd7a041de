"""What the steps of a reproduction were run with: the commit of the code and the prepared set, by their markers."""

from __future__ import annotations

from collections import Counter

from tuning.reproduction.results import Results
from urg.evaluation.sheet import Group, Line, Sheet


def run_with(results: Results) -> Sheet:
    """A line for each commit and each set, with the number of its steps; a warning where there are several."""
    done = [results.endings[name] for name in results.recipe.steps if results.done(name)]
    found = {
        "commit": Counter(ending.commit or "not recorded" for ending in done),
        "prepared set": Counter(ending.data for ending in done if ending.data is not None),
    }
    lines = [Line((what, which, str(steps))) for what, by in found.items() for which, steps in by.most_common()]
    notes = [
        f"WARNING: steps of more than one {what} stand side by side: {', '.join(by)}. To compare like with like, "
        "reproduce under another --name."
        for what, by in found.items()
        if len(by) > 1
    ]
    return Sheet("Code and data", ("what", "which", "steps"), (Group("", tuple(lines)),), notes=tuple(notes))
