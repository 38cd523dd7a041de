from __future__ import annotations

import pytest

from data_pipeline.errors import UserError
from data_pipeline.quality.metrics import METRICS, Item, metric_fields
from data_pipeline.quality.model_folder import MetricModel

ITEMS = [Item("say it", "the cat sat", "the cat sat"), Item("say it", "dogs ran", "the cat sat")]


def test_names_of_metrics_and_of_fields():
    assert metric_fields(["rougeL", "bleu"]) == {"rouge": ("rougeL",), "bleu": ("bleu",)}
    assert metric_fields(["rouge"]) == {"rouge": ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    assert metric_fields([]) == {}
    with pytest.raises(UserError, match=r"no metric bertscor; choose from .*bertscore.*, judge"):
        metric_fields(["bleu", "bertscor"])


def test_no_two_metrics_give_one_field():
    fields = [field for metric in METRICS.values() for field in metric.fields]
    assert len(set(fields)) == len(fields)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.needs_model])
def test_metrics_without_a_model_prefer_the_reference_itself(name: str):
    scores = METRICS[name].load(MetricModel(""))(ITEMS)
    assert set(scores) >= set(METRICS[name].fields)
    assert all(values[0] > values[1] for values in scores.values())
