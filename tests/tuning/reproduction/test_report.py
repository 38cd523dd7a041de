from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.page import Figure as Plot
from tuning.reproduce import plan, reproduce
from tuning.reproduction.config import ReproduceConfig, load_preset
from tuning.reproduction.data import data_key, pin, pinned
from tuning.reproduction.experiments import EXPERIMENTS
from tuning.reproduction.recipe import URG, Recipe
from tuning.reproduction.report import write_report
from tuning.reproduction.results import Figure, Results
from tuning.reproduction.run_with import run_with
from tuning.reproduction.steps import Ending, Step, ending_of, marker
from urg.evaluation.sheet import Sheet


def test_every_experiment_is_shown_beside_what_was_published(made_up: Callable[..., Results], recipe: Recipe):
    needs = plan(recipe.config)[1]
    page = write_report(made_up(), needs).read_text(encoding="utf-8")
    text = (recipe.root / "report.md").read_text(encoding="utf-8")
    stored = json.loads((recipe.root / "report.json").read_text(encoding="utf-8"))
    assert "GENERATED DATA" in page
    assert all(experiment.title in text for experiment in EXPERIMENTS.values())
    assert [name for name, part in stored["experiments"].items() if part["missing"]] == []
    assert "0.8010 ± 0.0010" in text  # URG's mean and spread over the seeds 0, 1, 2
    table2, of_all_rows, sure = stored["experiments"]["table2"]["tables"]
    assert "all 1,200 rows" in of_all_rows["title"]
    assert sure["groups"][0]["rows"][0][-1] == "above"
    assert stored["experiments"]["time"]["tables"][0]["groups"][0]["rows"]
    (ours,) = (row for group in table2["groups"] for row in group["rows"] if row[0] == "urg")
    beside = dict(zip(table2["columns"], ours, strict=True))
    assert (beside["published: published as"], beside["published: bertscore"]) == (
        "URG (770M)",
        "0.7895",
    )  # of its own size
    (timed, ratios) = stored["experiments"]["table4"]["tables"]
    first = dict(zip(timed["columns"], timed["groups"][0]["rows"][0], strict=True))
    assert (first["ours: rows/s"], first["published, 8 A100: rows/s"]) == ("2.000", "8.8889")
    assert "no result" in " ".join(ratios["notes"])  # --quick
    assert "L^0.90" in text.replace("\\", "")
    assert "compare-s0: human/sheet.csv." in text
    assert "compare-s0: cases.md." in text


@pytest.mark.parametrize("settings", [{"preset": "flan-t5-large", "shards": "set", "only": "table2"}])
def test_at_full_size_the_comparison_itself_shows_what_is_sure(made_up: Callable[..., Results]):
    """It is on all rows there."""
    _, systems, sure = EXPERIMENTS["table2"].show(made_up())
    assert isinstance(systems, Sheet)
    assert isinstance(sure, Sheet)
    assert "all 1,200 rows" in systems.title
    assert sure.groups[0].lines[0].cells[-1] == "above"


@pytest.mark.parametrize(
    ("settings", "size"),
    [({"preset": "flan-t5-large", "shards": "set"}, "770M"), ({"preset": "flan-t5-xl", "shards": "set"}, "3B")],
)
def test_ours_stands_beside_the_published_row_of_its_size(made_up: Callable[..., Results], size: str):
    results = made_up()
    table2, table3 = EXPERIMENTS["table2"].show(results)[0], EXPERIMENTS["table3"].show(results)[0]
    assert isinstance(table2, Sheet)
    assert isinstance(table3, Sheet)
    at = table2.head.index("published as")
    found = {line.cells[at]: line.cells[0] for group in table2.groups for line in group.lines}
    ours = {printed: own for printed, own in found.items() if printed.startswith("URG")}
    other = {"770M": "3B", "3B": "770M"}[size]
    assert (ours[f"URG ({size})"], ours[f"URG-rank ({size})"]) == ("urg", "urg_rank")
    assert (ours[f"URG ({other})"], ours[f"URG-rank ({other})"]) == ("–", "–")
    at = table3.head.index("published as")
    lines = {line.cells[at]: line.cells for line in table3.groups[0].lines}
    assert lines["w/o ERM (3B)"][0] == ("wo_erm" if size == "3B" else "–")
    own = lines["URG (3B)" if size == "3B" else "URG (770M), Table 2"]
    assert (own[0], own[at + 1]) == ("urg", "0.8045" if size == "3B" else "0.7895")


def test_a_recipe_wins_or_loses_where_every_seed_says_so(made_up: Callable[..., Results], recipe: Recipe):
    results = made_up(ablated={"schedule": {"urg": 0.9}, "gold": {"urg": 0.7}})
    (sheet,) = EXPERIMENTS["beyond"].show(results)
    assert isinstance(sheet, Sheet)
    against = {line.cells[0]: line.cells[-2:] for line in sheet.groups[0].lines}
    assert against["urg"] == ("–", "–")
    assert against["schedule"] == ("0.1000 ± 0.0000 wins", "0.0000 ± 0.0000")
    assert against["gold"] == ("-0.1000 ± 0.0000 loses", "0.0000 ± 0.0000")
    assert {line.cells[0]: line.cells[1] for line in sheet.groups[0].lines}["gold"] == "loss.selection gold"


def test_one_seed_decides_nothing(made_up: Callable[..., Results], monkeypatch: pytest.MonkeyPatch):
    results = made_up()
    monkeypatch.setattr(Results, "variant", lambda _, name, *__: Figure((0.9 if name == "schedule" else 0.8,)))
    (sheet,) = EXPERIMENTS["beyond"].show(results)
    assert isinstance(sheet, Sheet)
    against = {line.cells[0]: line.cells[-2:] for line in sheet.groups[0].lines}
    assert against["schedule"] == ("0.1000", "0.1000")


def test_what_was_not_done_is_missing_with_its_reason(made_up: Callable[..., Results], recipe: Recipe):
    whole, needs = made_up(), plan(recipe.config)[1]
    endings = {**whole.endings, "train-k1-s0": Ending(1.0, "out of memory"), "stats": Ending(1.0, "<b>")}
    text = write_report(Results(recipe, endings), needs | {}).with_name("report.md").read_text(encoding="utf-8")
    page = (recipe.root / "report.html").read_text(encoding="utf-8")
    assert "Missing: train-k1-s0: out of memory" in text
    assert "Missing: stats: &lt;b&gt;" in page
    assert "Dev score by K" not in text
    partly = write_report(Results(recipe, {}), needs, ["table3"]).with_name("report.md").read_text(encoding="utf-8")
    assert partly.count("Missing: not asked for") == len(EXPERIMENTS) - 1


def test_a_part_that_was_run_before_stays_in_the_report_of_another(made_up: Callable[..., Results], recipe: Recipe):
    """`--only beyond` after a whole run: all that is done is shown, and claims are of it."""
    needs = plan(recipe.config)[1]
    text = write_report(made_up(), needs, ["beyond"]).with_name("report.md").read_text(encoding="utf-8")
    assert "Missing" not in text
    assert "Dev score by K" in text


def test_only_what_is_asked_for_is_run_and_all_that_is_done_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[set[str]] = []

    def run(root: Path, steps: dict[str, Step], *_: object) -> dict[str, Ending]:
        ran.append(set(steps))
        return {name: Ending(1.0) for name in steps}

    told: list[Results] = []
    monkeypatch.setattr("tuning.reproduction.steps.run_steps", run)
    monkeypatch.setattr("tuning.reproduction.report.write_report", lambda results, *_: told.append(results))
    recipe, needs = plan(ReproduceConfig(only="table1", storage=str(tmp_path)))
    kept = recipe.steps["benchmark-rankers"]
    path = marker(recipe.root, kept.name)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"command": kept.command, "seconds": 2.0}), encoding="utf-8")
    reproduce(recipe, needs)
    assert ran == [{"prepare", "stats"}]
    assert set(told[0].endings) == {"prepare", "stats", "benchmark-rankers"}


def test_steps_of_several_commits_or_sets_are_warned_of(made_up: Callable[..., Results], recipe: Recipe):
    results = made_up()
    one = {name: Ending(1.0, commit="abc", data="k1") for name in recipe.steps}
    assert run_with(Results(recipe, one)).notes == ()
    mixed = one | {"stats": Ending(1.0, commit="def", data="k1"), "train-urg-s0": Ending(1.0, commit="abc", data="k2")}
    commits, sets = run_with(Results(recipe, mixed)).notes
    assert "more than one commit stand side by side: abc, def" in commits
    assert "more than one prepared set stand side by side: k1, k2" in sets
    text = write_report(Results(recipe, results.endings | mixed), plan(recipe.config)[1]).with_name("report.md")
    assert "WARNING: steps of more than one commit" in text.read_text(encoding="utf-8")


def test_figure_3_is_of_a_metric_that_the_trainings_recorded(made_up: Callable[..., Results], recipe: Recipe):
    """BERTScore for the evaluations alone leaves the dev split with ROUGE-L."""
    results = made_up()
    recipe.config = replace(recipe.config, bertscore_model="some-encoder")
    assert (results.headline, results.dev_metric) == ("bertscore", "rougeL")
    plot = EXPERIMENTS["fig3"].show(results)[0]
    assert isinstance(plot, Plot)
    assert plot.data[0]["y"]


def test_a_reproduction_stays_with_the_set_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    newest = ["first"]
    found = lambda folder, verify: SimpleNamespace(folder=Path(folder) / newest[0], manifest={"key": "k"})  # noqa: E731
    monkeypatch.setattr("data_pipeline.shards.ShardSet.open", found)
    given, root = str(tmp_path / "sets"), tmp_path / "reproduce"
    root.mkdir()
    assert pinned(root, given) == str(tmp_path / "sets" / "first")
    pin(root, given, pinned(root, given))
    newest[0] = "second"
    assert pinned(root, given) == str(tmp_path / "sets" / "first")
    assert pinned(root, str(tmp_path / "others")) == str(tmp_path / "others" / "second")
    assert pinned(root, None) is None
    assert data_key(given) == "k"


def test_a_reproduction_of_before_there_was_a_pin_stays_with_the_path_that_its_steps_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A finished training of it is done, whatever the newest set is; that of another path pins nothing."""
    found = lambda folder, verify: SimpleNamespace(folder=Path(folder) / "newest", manifest={"key": "k"})  # noqa: E731
    monkeypatch.setattr("data_pipeline.shards.ShardSet.open", found)
    given, root = str(tmp_path / "mix-instruct"), tmp_path / "reproduce"
    config = ReproduceConfig("flan-t5-large", "fig3", storage=str(tmp_path), shards=given)
    of_before = Recipe(config, load_preset(config.preset), root)
    step = of_before.steps[of_before.train(URG, 0)]
    path = marker(root, step.name)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"command": list(step.command), "seconds": 1.0}), encoding="utf-8")
    assert pinned(root, given) == given
    assert ending_of(root, plan(config)[0].steps[step.name]) is not None
    assert pinned(root, str(tmp_path / "other")) == str(tmp_path / "other" / "newest")
    pin(root, given, pinned(root, given))
    path.unlink()
    assert pinned(root, given) == given


def test_data_are_generated_where_the_prepared_set_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever named it, and whatever the preset; without a set it is the sample alone."""
    path = tmp_path / "ours.yaml"
    path.write_text("systems: {urg: sample}\nseeds: 1\nks: [1]\nprepare: {input: rows.jsonl}\n")
    ours, named = (
        Results(plan(ReproduceConfig(preset, "fig3", shards=shards, storage=str(tmp_path)))[0], {})
        for preset, shards in ((str(path), None), ("sample", str(tmp_path)))
    )
    sample = Results(plan(ReproduceConfig(storage=str(tmp_path)))[0], {})
    assert (ours.generated, named.generated, sample.generated) == (False, False, True)
    for told in (True, False):
        found = lambda folder, verify, told=told: SimpleNamespace(folder=folder, manifest={"generated": told})  # noqa: E731
        monkeypatch.setattr("data_pipeline.shards.ShardSet.open", found)
        assert {Results(each.recipe, {}).generated for each in (ours, named, sample)} == {told}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_part_of_it_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Figure 3 with K=1 and K=3 on a few rows of the sample: real commands, two trainings at once, and each once."""
    preset = load_preset("sample")
    rows = {"config": "sample", "sample.train": 48, "sample.dev": 8, "sample.test": 8}
    few = {"eval.every": 3, "eval.rows": 8}
    small = replace(preset, ks=[1, 3], prepare=rows, overrides=preset.overrides | few)
    monkeypatch.setattr("tuning.reproduce.load_preset", lambda _: small)
    config = ReproduceConfig(only="fig3", storage=str(tmp_path), seeds=1)
    report, failed = reproduce(*plan(config))
    assert failed == []
    stored = json.loads(report.with_name("report.json").read_text(encoding="utf-8"))
    (table,) = stored["experiments"]["fig3"]["tables"]
    assert [row[0] for row in table["groups"][0]["rows"]] == ["1", "3", "all"]
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "reproduce" / "logs").iterdir()}
    assert {path.stem for path in done} == {"prepare", "train-urg-s0", "train-k1-s0", "train-all_candidates-s0"}
    reproduce(*plan(config))
    assert {path: path.stat().st_mtime_ns for path in done} == done
