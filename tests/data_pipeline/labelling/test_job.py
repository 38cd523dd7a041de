"""What a labelling's keys depend on: under another one finished work is not found."""

from __future__ import annotations

import pytest

from data_pipeline.labelling import job as module
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.labelling.job import LabelJob


def job(metrics: str) -> LabelJob:
    """Of one file; its models are not looked at."""
    models = dict.fromkeys(("bleurt", "reward"), "some/model")
    return LabelJob(LabelConfig("rows.jsonl", "out", metrics=metrics, models=models), [], [], {"reward": "a"})


def keys(metrics: str) -> tuple[str, dict[str, str]]:
    """(the set's key, pass → folder of its scores)."""
    found = job(metrics)
    return found.key, {each.name: each.folder for each in found.passes()}


def test_a_metrics_version_is_in_the_keys_of_what_has_the_metric_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert module.VERSION == 2  # raised, every finished set of every user is refused
    (plain, passes), (rewarded, more) = keys("rouge,bleu,bleurt"), keys("rouge,reward,bleurt")
    monkeypatch.setattr(module, "METRIC_VERSIONS", {})  # as older versions made their keys
    assert keys("rouge,bleu,bleurt") == (plain, passes)
    old, before = keys("rouge,reward,bleurt")
    assert old != rewarded
    assert {name for name in before if before[name] != more[name]} == {"reward"}
    monkeypatch.setattr(module, "METRIC_VERSIONS", {"bleu": 3})
    third, after = keys("rouge,bleu,bleurt")
    assert third != plain
    assert {name for name in after if after[name] != passes[name]} == {"rouge, bleu"}
