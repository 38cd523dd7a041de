"""Evaluation end to end with a stub of the ensemble: the figures, what is missing, the files, and bad input."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from data_pipeline.errors import UserError
from data_pipeline.quality.model_folder import MetricModel
from data_pipeline.quality.rouge import rouge
from data_pipeline.shards import ShardSet, TokenizedExample
from tests.urg.made_up import StubEnsemble, StubShards, random_rows, row
from urg.evaluate import EvaluateConfig, evaluate
from urg.evaluation.comparison import METRICS, Comparison, compare, gaps
from urg.evaluation.config import StatisticsConfig
from urg.evaluation.judge import JUDGE_METRICS
from urg.evaluation.rank_metrics import RANK_METRICS, hit_at_1, ndcg, spearman
from urg.evaluation.table import best, plain_table, print_table
from urg.evaluation.text_metrics import MODEL_METRICS, TextMetrics
from urg.systems import SYSTEMS, Setup, build_systems

NAN = float("nan")
ORACLES = {f"oracle_{metric}" for metric in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu")}


def compared(rows: list[TokenizedExample], label: str = "quality", **changes: Any) -> Comparison:
    models = tuple(sorted({name for made in rows for name in made.models}))
    systems, unavailable = build_systems(Setup(label=label, models=models, ensemble=StubEnsemble(**changes)))  # type: ignore[arg-type]
    return compare(rows, label, systems, TextMetrics(), unavailable)


class Run:
    """`evaluate` on made-up rows, and what it wrote."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        self.stub = StubEnsemble(noise=0.3)

    def __call__(self, made: list[TokenizedExample], manifest: dict[str, Any] | None = None, /, **changes: Any) -> Any:
        shards = StubShards(made, manifest or {})
        self._patch.setattr(ShardSet, "open", classmethod(lambda cls, folder: shards))
        model = self.folder / "model"
        model.mkdir(exist_ok=True)
        if not (model / "urg.json").exists():
            (model / "urg.json").write_text(json.dumps({"label": "quality", "steps": 100, "k": 2}))
        settings: dict[str, Any] = {"shards": "prepared", "output": str(self.folder / "out"), "model": str(model)}
        evaluate(EvaluateConfig(**(settings | changes)), lambda config: self.stub)  # type: ignore[arg-type,return-value]
        return self.metrics()

    def metrics(self) -> Any:
        return json.loads((self.folder / "out" / "metrics.json").read_text("utf-8"))

    def predictions(self) -> list[dict[str, Any]]:
        return pyarrow.parquet.read_table(self.folder / "out" / "predictions.parquet").to_pylist()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def test_every_mean_equals_a_slow_derivation() -> None:
    rows = random_rows(20)
    result = compared(rows, noise=0.5)
    ranked, fused = result.get("urg_rank"), result.get("urg")
    assert ranked is not None
    assert fused is not None
    hits, gains, correlations, labels, texts = [], [], [], [], []
    for made, answer in zip(rows, ranked.answers, strict=True):
        assert answer is not None
        assert answer.scores is not None
        assert answer.picked == int(np.argmax(answer.scores))
        quality = made.scores["quality"]
        hits.append(hit_at_1(answer.scores, quality))
        gains.append(ndcg(answer.scores, quality))
        correlations.append(spearman(answer.scores, quality))
        labels.append(quality[answer.picked])
        texts.append(made.texts[answer.picked])
    expected = {"hit@1": hits, "ndcg": gains, "spearman": correlations, "label": labels}
    expected["rougeL"] = rouge(texts, [made.output for made in rows])["rougeL"]
    for metric, values in expected.items():
        assert ranked.means[metric] == pytest.approx(float(np.nanmean(values))), metric
    texts = [answer.text for answer in fused.answers if answer is not None]
    assert fused.means["rouge2"] == pytest.approx(np.mean(rouge(texts, [made.output for made in rows])["rouge2"]))


def test_the_oracle_bounds_every_pick_and_a_perfect_ranker_reaches_it() -> None:
    result = compared(random_rows(30))
    picks = {r.name: r.means["label"] for r in result.results if "label" in r.means}
    assert picks["urg_rank"] == picks["oracle"] == max(picks.values())
    assert picks["random"] < picks["oracle"]
    gap = next(gap for gap in gaps(result) if gap.metric == "label")
    assert gap.closed == {"urg_rank": pytest.approx(1.0)}
    assert gap.best_model == max((n for n in picks if n.startswith("model-")), key=lambda name: picks[name])
    text_gap = next(gap for gap in gaps(result) if gap.metric == "rougeL")
    assert text_gap.closed["urg"] > 1.0  # the stub fuses what its two best have right


def test_metrics_json_has_a_value_or_a_reason_for_everything(run: Run) -> None:
    written = run(random_rows(6))
    assert set(written["systems"]) == {
        *(f"model-{i}" for i in range(4)),
        "random",
        "longest",
        "urg_rank",
        "urg",
        "oracle",
        *ORACLES,
    }
    for name, means in written["systems"].items():
        for metric in (*METRICS, "corpus_bleu"):
            reason = written["missing"].get(metric) or written["missing"].get(f"{name}.{metric}")
            assert (metric in means) != bool(reason), (name, metric)
        assert all(isinstance(value, float) and math.isfinite(value) for value in means.values())
    assert written["missing"]["bertscore"].startswith("no model was named")
    assert "--bleurt_model" in written["missing"]["bleurt"]
    assert written["missing"]["gpt_rank"] == "no row has verdicts (cmp_results)"
    assert "new text, not a candidate" in written["missing"]["urg.label"]
    assert written["metrics"]["corpus_bleu"].startswith("nrefs:1")
    assert written["counts"]["urg_rank"]["rougeL"] == written["data"]["rows"] == 6


def test_predictions_hold_every_answer_and_reproduce_the_means(run: Run) -> None:
    rows = random_rows(8)
    written, lines = run(rows), run.predictions()
    assert len(lines) == 8 * (9 + len(ORACLES))
    for name, means in written["systems"].items():
        mine = [line for line in lines if line["system"] == name]
        assert [line["id"] for line in mine] == [made.id for made in rows]
        for metric in METRICS:
            values = [line[metric] for line in mine if line[metric] is not None]
            assert (np.mean(values) if values else None) == pytest.approx(means.get(metric)), (name, metric)
    ranked = next(line for line in lines if line["system"] == "urg_rank")
    assert ranked["picked_model"] == ranked["models"][int(np.argmax(ranked["scores"]))]
    fused = next(line for line in lines if line["system"] == "urg")
    assert fused["picked_model"] is None
    assert fused["text"]
    assert fused["label"] is None


def test_options_reach_the_model_and_the_rows(run: Run) -> None:
    written = run(random_rows(9), rows=5, num_beams=3, max_new_tokens=17)
    assert run.stub.calls == [{"queries": 5, "num_beams": 3, "max_new_tokens": 17}]
    assert written["data"]["rows"] == 5
    assert written["settings"]["num_beams"] == 3


def test_ragged_candidates_count_each_model_on_its_own_rows() -> None:
    rows = [
        row("1", ["a b", "c d"], models=["x", "y"], output="a b", quality=[1.0, 0.0]),
        row("2", ["c d"], models=["y"], output="a b", quality=[0.5]),
        row("3", ["a b", "c d", "e"], models=["y", "x", "z"], output="a b", quality=[1.0, 0.0, 0.2]),
    ]
    result = compared(rows)
    x, y, z = (result.get(name) for name in "xyz")
    assert x
    assert y
    assert z
    assert (x.rows, y.rows, z.rows) == (2, 3, 1)
    assert (x.means["label"], y.means["label"]) == (0.5, 0.5)
    assert x.means["hit@1"] == 0.5
    assert y.counts["hit@1"] == 2
    assert ("z", "label") not in best(result)
    ranked = result.get("urg_rank")
    assert ranked
    assert ranked.left_out["ndcg"] == {"fewer than 2 candidates have the label": 1}
    gap = next(gap for gap in gaps(result) if gap.metric == "label")
    assert gap.best_model == "y"  # x stands in two rows of three only
    assert gap.rows == 3


def test_missing_labels_are_left_out_and_counted() -> None:
    rows = [
        row("1", ["a", "b b"], output="a", quality=[1.0, NAN]),
        row("2", ["a", "b b"], output="a", quality=[1.0, 3.0]),
        row("3", ["a", "b b"], output="a", quality=[NAN, NAN]),
    ]
    result = compared(rows)
    longest, first, oracle = (result.get(name) for name in ("longest", "model-0", "oracle"))
    assert longest
    assert first
    assert oracle
    assert (longest.means["label"], longest.counts["label"]) == (3.0, 1)
    assert (first.means["label"], first.counts["label"]) == (1.0, 2)
    assert oracle.rows == 2  # no answer where no candidate has a label
    gap = next(gap for gap in gaps(result) if gap.metric == "label")
    assert gap.rows <= 2


def test_without_references_rank_metrics_work_and_text_metrics_say_why(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    written = run([replace(made, output="  ") for made in random_rows(5)])
    ranked = written["systems"]["urg_rank"]
    assert {"label", *RANK_METRICS} == set(ranked)
    assert "no row has a reference text" in written["missing"]["rougeL"]
    assert "no row has a reference text" in written["missing"]["corpus_bleu"]
    assert written["systems"]["urg"] == {}
    assert [gap["metric"] for gap in written["gaps"].values()] == ["label"]
    assert "missing: rouge1, rouge2, rougeL, rougeLsum, bleu, corpus_bleu (no row has" in capsys.readouterr().out


def test_some_rows_without_reference_are_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = random_rows(5)
    written = run([replace(rows[0], output=""), *rows[1:]])
    assert written["counts"]["urg"]["bleu"] == 4
    assert "note: 1 rows have no reference" in capsys.readouterr().out


def test_generated_data_and_untrained_model_are_said_everywhere(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.folder / "model").mkdir()
    (run.folder / "model" / "urg.json").write_text(json.dumps({"label": "quality", "steps": 0}))
    written = run(random_rows(5), {"generated": True})
    assert written["data"]["generated"]
    assert not written["model"]["trained"]
    for shown in (capsys.readouterr().out, written["title"], (run.folder / "out" / "report.html").read_text("utf-8")):
        assert "GENERATED DATA" in shown
        assert "UNTRAINED MODEL" in shown
    (run.folder / "model" / "urg.json").unlink()
    assert "GENERATED" not in run(random_rows(5))["title"]


def test_table_tells_where_results_are_and_what_is_next(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(random_rows(5))
    printed = capsys.readouterr().out
    for expected in (
        "label: quality",
        str(run.folder / "out" / "metrics.json"),
        "file://",
        "python -m urg.ensemble",
        "gap on",
    ):
        assert expected in printed
    lines = [line for line in printed.splitlines() if line.startswith(("urg ", "urg_rank", "oracle"))]
    assert any("*" in line for line in lines)
    assert "*" not in lines[-1]


def test_table_columns_line_up_and_the_best_stands_out() -> None:
    result = compared(random_rows(6))
    title, head, *body = plain_table(result, "title").splitlines()
    assert title == "title"
    assert len({len(line.rstrip("* ")) <= len(head) for line in body}) == 1
    marked = best(result)
    assert {metric for _, metric in marked} == {*METRICS} - {*MODEL_METRICS, *JUDGE_METRICS}
    assert not any(name == "oracle" for name, _ in marked)


@pytest.mark.parametrize("width", [60, 200])
def test_rich_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    print_table(compared(random_rows(6)), "a [title]", out)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert shown.startswith("a [title]\n")
    assert (shown.count("urg_rank") > 1) == (width == 60)  # cut into blocks of columns
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown


def test_without_a_model_there_is_a_table_and_the_reason(run: Run) -> None:
    written = run(random_rows(5), model=None, label="quality")
    assert written["model"] == {}
    assert "urg" not in written["systems"]
    assert "--model" in written["missing"]["urg"]
    assert not run.stub.calls


def test_the_models_own_label_is_the_default_and_another_is_noted(run: Run) -> None:
    rows = [replace(made, scores=made.scores | {"other": made.scores["quality"] * 2 - 5}) for made in random_rows(4)]
    assert run(rows)["data"]["label"] == "quality"
    written = run(rows, label="other")
    assert written["data"]["label"] == "other"
    assert "trained to rank by quality, and is judged here by other" in " ".join(written["notes"])


def test_bertscore_is_there_when_an_encoder_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "data_pipeline.quality.bertscore"
    monkeypatch.setattr(f"{module}.load_scorer", lambda model, device: None)
    monkeypatch.setattr(f"{module}.bertscore", lambda texts, references, model, device: [0.25] * len(texts))
    monkeypatch.setattr(f"{module}.describe", lambda model: f"{model}, layer 9")
    written = run(random_rows(4), bertscore_model="some/encoder")
    assert written["systems"]["urg"]["bertscore"] == written["systems"]["random"]["bertscore"] == 0.25
    assert "bertscore" not in written["missing"]
    assert written["metrics"]["bertscore"] == "some/encoder, layer 9"


def test_what_the_metrics_models_are_told_reaches_them_and_stands_in_the_results(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, told = run.folder / "bart_score.pth", {}
    weights.write_bytes(b"")
    for module, name in (("bartscore", "BartScore"), ("regression", "Bleurt")):

        def made(model: MetricModel, name: str = name) -> Any:
            told[name] = model
            return lambda texts, references: [-1.0] * len(texts)

        monkeypatch.setattr(f"data_pipeline.quality.{module}.{name}", made)
    written = run(
        random_rows(4), device="cpu", bartscore_model="bart", bartscore_weights=str(weights), bleurt_model="b",
        bleurt_tokens=128, metric_batch_tokens=99,
    )  # fmt: skip
    assert told == {
        "BartScore": MetricModel("bart", weights=str(weights), batch_tokens=99),
        "Bleurt": MetricModel("b", batch_tokens=99, max_tokens=128),
    }
    assert written["systems"]["urg"]["bleurt"] == -1.0
    assert written["metrics"]["bartscore"] == f"model bart with the weights {weights}"
    assert "cut at 128 tokens" in written["metrics"]["bleurt"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"bleurt_tokens": 7}, "bleurt_tokens=7: must be 8 or more"),
        ({"metric_batch_tokens": 0}, "metric_batch_tokens=0: must be at least 1"),
        ({"bartscore_weights": "x.pth"}, "bartscore_weights='x.pth': needs the model: name --bartscore_model"),
    ],
)
def test_wrong_settings_of_metrics_are_named(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        EvaluateConfig(shards="prepared", output="out", **wrong)


def test_bad_input_ends_in_one_clear_sentence(run: Run) -> None:
    rows = random_rows(3)
    with pytest.raises(UserError, match=r"no row .* has the score judge; .*quality|No row .* has the score judge"):
        run(rows, label="judge")
    with pytest.raises(UserError, match="has no split dev"):
        run(rows, split="dev")
    with pytest.raises(UserError, match="1 ids more than once, such as row/0"):
        run([*rows, rows[0]])
    with pytest.raises(UserError, match="the data have quality: choose one by --label"):
        run(rows, model=None)
    with pytest.raises(UserError, match="no encoder folder /no/such"):
        run(rows, bertscore_model="/no/such")
    for metric in ("bartscore_model", "bleurt_model"):
        with pytest.raises(UserError, match="/no/such"):
            run(rows, **{metric: "/no/such"})
    assert not run.stub.calls, "before anything slow"
    (run.folder / "model" / "urg.json").write_text("{")
    with pytest.raises(UserError, match=r"urg\.json is no JSON"):
        run(rows)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(run: Run) -> None:
    (run.folder / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write into .*file/out"):
        run(random_rows(3), output=str(run.folder / "file" / "out"))
    assert not run.stub.calls


def test_a_read_only_output_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="cannot write into"):
        run(random_rows(3), output="/sys/evaluation")  # where nobody may write, root included


@pytest.mark.parametrize("wrong", [{"num_beams": 0}, {"rows": 0}, {"batch_size": -1}, {"cases": -1}, {"workers": -1}])
def test_a_wrong_setting_is_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluateConfig(shards="x", output="y", **wrong)  # type: ignore[arg-type]


def test_a_rerun_replaces_its_files_and_leaves_no_other(run: Run) -> None:
    run(random_rows(3))
    first = {path.name: path.read_bytes() for path in (run.folder / "out").iterdir() if path.is_file()}
    run(random_rows(3))
    again = {path.name: path.read_bytes() for path in (run.folder / "out").iterdir() if path.is_file()}
    assert again == first
    assert set(first) == {
        "metrics.json",
        "predictions.parquet",
        "report.html",
        "tables.md",
        "tables.tex",
        "tables.json",
    }


def test_a_killed_run_goes_on_where_it_stopped(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = random_rows(6)
    whole = run(rows)
    assert len(run.stub.calls) == 1
    (run.folder / "out" / "metrics.json").unlink()
    assert run(rows) == whole  # the kept answers give the same figures
    assert len(run.stub.calls) == 1
    assert "kept from an earlier run: urg_rank, urg" in capsys.readouterr().out
    (run.folder / "out" / "answers" / "urg.parquet").unlink()  # killed before this one was done
    assert run(rows) == whole
    assert len(run.stub.calls) == 2
    run(rows, num_beams=2)  # other options, other data, another model: another key
    run([replace(rows[0], texts=("other", *rows[0].texts[1:])), *rows[1:]])
    (run.folder / "model" / "weights").write_bytes(b"other")
    run(rows)
    assert len(run.stub.calls) == 5
    predictions = run.folder / "predictions.jsonl"
    for content in ("one", "two"):  # another system's own
        predictions.write_text("".join(json.dumps({"id": row.id, "text": content}) + "\n" for row in rows))
        run(rows, folders={"imported": str(predictions)})
        assert {line["text"] for line in run.predictions() if line["system"] == "imported"} == {content}
    assert len(run.stub.calls) == 5
    run(rows, fresh=True)
    assert len(run.stub.calls) == 6


def test_a_folder_or_file_that_does_not_fit_is_refused_before_the_first_answer(run: Run) -> None:
    rows, answers = random_rows(6), run.folder / "out" / "answers"
    few = run.folder / "few.jsonl"
    few.write_text("".join(json.dumps({"id": made.id, "text": "x"}) + "\n" for made in rows[:3]))
    for workers in (0, 2):
        with pytest.raises(UserError, match="no folder /no/typo for gen_fuser"):
            run(rows, folders={"gen_fuser": "/no/typo"}, workers=workers)
        with pytest.raises(UserError, match="lacks 3 of 6 rows, such as row/3"):
            run(rows, folders={"imported": str(few)}, workers=workers)
    assert not run.stub.calls
    assert not answers.exists()
    assert "imported" in run(rows, folders={"imported": str(few)}, rows=3)["systems"]
    few.write_text("".join(json.dumps({"id": made.id, "text": "x"}) + "\n" for made in rows))
    for part in ({"rows": 4}, {"folds": 2, "fold": 1}):  # of a file for the whole split
        assert "imported" in run(rows, folders={"imported": str(few)}, **part)["systems"]


def test_predictions_that_are_brought_stand_under_names_of_their_own(run: Run) -> None:
    rows, files = random_rows(6), {}
    for name in ("gpt", "people"):
        files[name] = str(run.folder / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps({"id": made.id, "text": name}) + "\n" for made in rows))
    written = run(rows, imported=files)
    assert {name for name, kind in written["kinds"].items() if kind == "closed"} == {"gpt", "people"}
    assert {line["text"] for line in run.predictions() if line["system"] == "people"} == {"people"}
    assert "imported" not in written["missing"]
    assert ("urg", "gpt") in {(test["first"], test["second"]) for test in written["tests"]["rougeL"]}
    assert set(run(rows, imported=files, systems="random,gpt")["systems"]) == {"random", "gpt"}
    assert set(run(rows, imported=files, systems="imported")["systems"]) == {"gpt", "people"}
    with pytest.raises(UserError, match=r"there is no system claude; choose from .* gpt, people"):
        run(rows, imported=files, systems="claude")
    for name in ("random", "model-1", "all"):
        with pytest.raises(UserError, match=rf"imported\.{name}: is the name of another system"):
            run(rows, imported={name: files["gpt"]})
    calls = len(run.stub.calls)
    with pytest.raises(UserError, match=r"gpt\.jsonl has 3 ids that are not in the split"):
        run(rows[:3], imported=files, fresh=True)
    assert len(run.stub.calls) == calls, "before the first answer"


def test_all_parts_are_one_evaluation_and_one_alone_is_a_part_of_it(run: Run) -> None:
    rows = random_rows(12)
    for fold in range(2):
        (run.folder / f"m-{fold}").mkdir()
        settings = {"label": "quality", "steps": 100 * fold}
        (run.folder / f"m-{fold}" / "urg.json").write_text(json.dumps(settings))
    asked: dict[str, Any] = {"folds": 2, "model": str(run.folder / "m-{fold}"), "systems": "random,urg_rank"}
    one = run(rows, **asked, fold=1)
    assert one["model"]["folder"] == str(run.folder / "m-1")
    assert one["model"]["trained"]
    whole = run(rows, **asked)
    assert whole["data"]["rows"] == whole["counts"]["urg_rank"]["label"] == 12 > one["data"]["rows"] > 0
    assert not whole["model"]["trained"], "one of the two is not"
    assert [line["id"] for line in run.predictions() if line["system"] == "urg_rank"] == [made.id for made in rows]
    (run.folder / "m-0" / "urg.json").unlink()
    with pytest.raises(UserError, match="m-0 is no URG model"):
        run(rows, **asked)


def test_damaged_answers_are_made_again(run: Run) -> None:
    whole = run(random_rows(4))
    kept = run.folder / "out" / "answers" / "urg.parquet"
    kept.write_bytes(kept.read_bytes()[:100])
    assert run(random_rows(4)) == whole
    assert len(run.stub.calls) == 2


def test_systems_by_name(run: Run) -> None:
    written = run(random_rows(4), systems="random, model-1")
    assert list(written["systems"]) == ["model-1", "random"]
    assert not run.stub.calls  # URG was not asked, so it was not loaded
    assert set(run(random_rows(4), systems="models,oracle")["systems"]) == {*(f"model-{i}" for i in range(4)), "oracle"}
    with pytest.raises(UserError, match="there is no system nonesuch; choose from all, models, oracles, random"):
        run(random_rows(4), systems="urg,nonesuch")
    with pytest.raises(UserError, match=r"urg cannot run: no URG model was given"):
        run(random_rows(4), systems="urg", model=None, label="quality")


def test_intervals_and_tests_are_written(run: Run) -> None:
    written = run(random_rows(40), statistics=StatisticsConfig(pairs="urg_rank:random,urg_rank:oracle"))
    for name, means in written["systems"].items():
        assert written["intervals"][name].keys() == means.keys() - {"corpus_bleu"}
        for metric, (low, high) in written["intervals"][name].items():
            assert low - 1e-9 <= means[metric] <= high + 1e-9
    (better, worse) = written["tests"]["label"]
    assert (better["first"], better["second"], better["rows"]) == ("urg_rank", "random", 40)
    assert better["difference"] > 0 > worse["difference"]
    assert better["p_holm"] < 0.01
    with pytest.raises(UserError, match="urg_rank:nonesuch does not name two systems"):
        run(random_rows(4), statistics=StatisticsConfig(pairs="urg_rank:nonesuch"))
    with pytest.raises(UserError, match=r"statistics\.metrics names rouge, which is no metric"):
        run(random_rows(4), statistics=StatisticsConfig(metrics="rouge"))


def test_verdicts_that_cannot_be_used_are_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"model-0,model-1": "A is better", "model-0,unknown": "A is better", "model-1,model-2": "who knows"}
    rows = random_rows(4)
    written = run([replace(rows[0], cmp_results=bad), *rows[1:]])
    assert written["judge"]["rows_with_verdicts"] == 1
    assert sum(written["judge"]["verdicts_left_out"].values()) == 2
    assert written["systems"]["model-0"]["gpt_rank"] == 1.0
    assert written["systems"]["model-2"]["gpt_rank"] == 2.0  # as published: between the two that were compared
    assert "model-2.beat_vic" in written["missing"] or "beat_vic" in written["missing"]
    printed = capsys.readouterr().out
    assert "note: 1 verdicts of cmp_results left out: names a model that is not among" in printed
    assert "note: 3 rows have no verdicts" in printed


def test_list_is_json_and_light() -> None:
    command = [sys.executable, "-m", "urg.evaluate", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    listed = json.loads(done.stdout)
    assert {"models", "oracles", *SYSTEMS} == {system["name"] for system in listed["systems"]}
    described = {system["name"]: system["about"] for system in listed["systems"]}
    assert all(about.endswith(".") for about in described.values()), described
    assert len(set(described.values())) == len(described)
    assert {*METRICS, "corpus_bleu"} == {metric["name"] for metric in listed["metrics"]}
    assert next(metric for metric in listed["metrics"] if metric["name"] == "gpt_rank")["better"] == "lower"


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_command_on_prepared_shards_and_a_real_model(tmp_path: Path) -> None:
    """From generated rows through Ray Data, shards on disk and a random URG to the three files, by the command line."""
    from data_pipeline.config import PrepareConfig, SampleSize
    from data_pipeline.prepare import prepare
    from data_pipeline.shards import ShardSet
    from urg.model import URG, Settings

    sizes = SampleSize(train=40, dev=8, test=10)
    prepared = prepare(PrepareConfig(output=str(tmp_path / "prepared"), vocab_size=512, sample=sizes))
    shards = ShardSet.open(prepared)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    URG.from_scratch(len(shards.tokenizer()), Settings(label="rougeL"), **shape).save_pretrained(tmp_path / "model")
    shards.tokenizer().save_pretrained(tmp_path / "model")
    asked = {"shards": prepared.parent, "model": tmp_path / "model", "output": tmp_path / "out", "max_new_tokens": 8}
    command = [sys.executable, "-m", "urg.evaluate", *(f"--{key}={value}" for key, value in asked.items())]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "GENERATED DATA — UNTRAINED MODEL" in done.stdout
    written = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    oracles = {"oracle", "oracle_judge", *ORACLES}
    assert set(written["systems"]) == {*shards.models, "random", "longest", "urg_rank", "urg", *oracles}
    assert written["systems"]["oracle"]["label"] == max(
        means["label"] for means in written["systems"].values() if "label" in means
    )
    # the sample's labels were computed by the same code as the metrics
    assert written["systems"]["oracle"]["label"] == pytest.approx(written["systems"]["oracle"]["rougeL"], abs=1e-6)
    wrong = subprocess.run([*command, "--label=judge"], capture_output=True, text=True, timeout=240, cwd=root)
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: No row .* has the score judge; rank by one that is there .*\n", wrong.stderr)
