"""The evaluations in a run's folder."""

from __future__ import annotations

from pathlib import Path

from urg.training.evaluations import EVALUATIONS, read_evaluations, record_evaluation


def test_a_step_keeps_its_first_evaluation_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == []
    record_evaluation(tmp_path, 20, {"rougeL": 0.2})
    record_evaluation(tmp_path, 10, {"rougeL": 0.1})
    record_evaluation(tmp_path, 20, {"rougeL": 0.9})
    with (tmp_path / EVALUATIONS).open("a") as file:
        file.write('{"step": 30, "sec')
    record_evaluation(tmp_path, 30, {"rougeL": 0.3})  # the step again, after the kill
    found = [(e.step, e.metrics["rougeL"]) for e in read_evaluations(tmp_path)]
    assert found == [(10, 0.1), (20, 0.2), (30, 0.3)]
