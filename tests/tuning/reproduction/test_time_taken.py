from __future__ import annotations

from collections.abc import Callable

import pytest

from tuning.reproduction.recipe import Recipe
from tuning.reproduction.results import Results
from tuning.reproduction.steps import Ending
from tuning.reproduction.time_taken import busy_seconds, time_taken


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(100, 60), (160, 30)], 90),
        ([(100, 60), (130, 60)], 90),  # side by side for half of it
        ([(100, 60), (110, 10), (150, 20)], 70),  # one within another
        ([(5000, 10), (100, 60)], 70),  # a pause, in any order
    ],
)
def test_steps_side_by_side_count_once_and_pauses_not_at_all(spans: list[tuple[int, int]], seconds: int):
    assert busy_seconds(Ending(took, began=begin) for begin, took in spans) == seconds


def test_the_table_holds_the_steps_that_are_done(made_up: Callable[..., Results], recipe: Recipe):
    names = ["train-urg-s0", "train-urg-s1", "compare-s0"]
    endings = {name: Ending(60.0 * (i + 1), began=100.0 + 60 * i) for i, name in enumerate(names)}
    endings["compare-s1"] = Ending(9.0, "out of memory", 50.0)
    sheet = time_taken(Results(recipe, endings))
    rows = {line.cells[0]: line.cells[1:] for line in sheet.groups[0].lines}
    assert rows == {"urg.train": ("2", "3.0", "120"), "urg.evaluate": ("1", "3.0", "180")}
    assert f"3 of {len(recipe.steps)} steps are done, 2 at once, in 5.0 minutes" in sheet.notes[0]
