from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from tuning.reproduction.recipe import ALL_ROWS, Recipe
from tuning.reproduction.results import Results
from tuning.reproduction.sureness import FUSERS, RANKERS, all_rows
from tuning.reproduction.sureness import tested as differences_of
from urg.evaluation.comparison import Comparison, Result
from urg.evaluation.config import StatisticsConfig
from urg.evaluation.statistics import statistics
from urg.systems.protocol import Kind


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


def test_what_the_report_and_the_claims_hold_against_each_other_is_tested_by_default():
    kinds: dict[str, Kind] = {"sim-a": "model", "oracle": "ceiling", "urg_rank": "ranker", "urg": "fuser"}
    kinds |= dict.fromkeys(RANKERS, "ranker") | dict.fromkeys(FUSERS, "fuser")
    values = {name: {"rougeL": np.arange(4) + place} for place, name in enumerate(kinds)}
    results = [Result(name, kind, [], values[name], {"rougeL": 1.0}, {}, {}) for name, kind in kinds.items()]
    stats = statistics(Comparison([], "label", tuple(results), {}), StatisticsConfig(resamples=0, trials=10), 0)
    found = differences_of({"tests": {"rougeL": [asdict(test) for test in stats.tests["rougeL"]]}}, "rougeL")
    pairs = [("urg_rank", name) for name in RANKERS]
    pairs += [("urg", name) for name in (*FUSERS, "urg_rank", "sim-a", "oracle")]
    assert set(pairs) <= set(found)


def test_what_was_not_measured_is_no_line():
    document = {"data": {"rows": 8}, "systems": {"urg": {}}, "kinds": {}, "intervals": {}, "tests": {"rougeL": []},
                "statistics": ""}  # fmt: skip
    systems, sure = all_rows(document, ("rougeL",))
    assert systems.groups[0].lines[0].cells == ("urg", "–")
    assert sure.groups[0].lines == ()
