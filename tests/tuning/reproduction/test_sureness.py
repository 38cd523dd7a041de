from __future__ import annotations

import json
from collections.abc import Callable

from tuning.reproduction.recipe import ALL_ROWS, Recipe
from tuning.reproduction.results import Results
from tuning.reproduction.sureness import all_rows


def test_each_system_has_its_interval_and_each_difference_that_counts_its_verdict(
    made_up: Callable[..., Results], recipe: Recipe
):
    made_up()
    document = json.loads((recipe.output(ALL_ROWS) / "metrics.json").read_text(encoding="utf-8"))
    systems, sure = all_rows(document, ("rougeL", "bleu"))
    rows = {line.cells[0]: line.cells[1:] for line in systems.groups[0].lines}
    assert rows["urg"] == ("0.8000 [0.7900, 0.8100]", "0.80")
    assert "all 1,200 rows" in systems.title
    assert [line.cells for line in sure.groups[0].lines] == [
        ("label", "urg_rank", "pair_ranker", "+0.0500", "0.001", "above"),
        ("rougeL", "urg", "llm_blender", "+0.0800", "0.03", "above"),
        ("rougeL", "urg", "sim-b", "+0.2000", "0.2", "undecided"),  # the best single model by ROUGE-L
        ("rougeL", "urg", "oracle", "-0.1000", "0.002", "below"),
    ]


def test_what_was_not_measured_is_no_line():
    document = {"data": {"rows": 8}, "systems": {"urg": {}}, "kinds": {}, "intervals": {}, "tests": {"rougeL": []},
                "statistics": ""}  # fmt: skip
    systems, sure = all_rows(document, ("rougeL",))
    assert systems.groups[0].lines[0].cells == ("urg", "–")
    assert sure.groups[0].lines == ()
