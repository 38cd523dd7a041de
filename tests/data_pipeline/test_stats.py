from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from data_pipeline.prepare import prepare
from data_pipeline.statistics.published import CARD, compare_with_card, is_mixinstruct
from data_pipeline.statistics.report import report_page
from data_pipeline.statistics.tables import plain, print_tables, tables
from data_pipeline.stats import StatsConfig, collect, main

Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]
ATTACK = '<script>alert("x")</script><img src=x>'


@pytest.fixture
def count(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """count(source, **settings): what stats.json would hold."""

    def run(source: Any, **settings: Any) -> dict[str, Any]:
        named = source if isinstance(source, dict) else str(source)
        return collect(StatsConfig(named, str(tmp_path / "stats"), **settings))

    return run


def test_means_shares_and_correlations_are_those_of_the_numbers(count: Any, make_rows: Rows, write_rows: Write):
    rows = make_rows(40, candidates=4)
    told = count(write_rows("a.jsonl", rows))
    split = told["splits"]["all"]
    scores = np.array(
        [[[c["scores"][label] for c in row["candidates"]] for row in rows] for label in ("rougeL", "bartscore")]
    )
    for label, values in zip(("rougeL", "bartscore"), scores, strict=True):
        entry = split["labels"][label]
        assert (entry["rows"], entry["values"], entry["missing"]) == (40, 160, 0)
        assert entry["oracle_mean"] == pytest.approx(values.max(axis=1).mean())
        for j in range(4):
            cell = entry["models"][f"model-{j}"]
            expected = [values[:, j].mean(), values[:, j].std(), values[:, j].min(), values[:, j].max()]
            assert [cell[key] for key in ("mean", "std", "min", "max")] == pytest.approx(expected)
            assert cell["best_share"] == pytest.approx((values.argmax(axis=1) == j).mean())
    pair = split["correlation"]["bartscore,rougeL"]
    assert pair["pearson"] == pytest.approx(np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1])
    by_row = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(*scores, strict=True)]
    assert pair["spearman"] == pytest.approx(np.mean(by_row))
    assert pair["rows"] == 40


def test_ties_share_and_constant_labels_have_no_correlation(count: Any, make_rows: Rows, write_rows: Write):
    rows = make_rows(3, candidates=2)
    for row in rows:
        for index, candidate in enumerate(row["candidates"]):
            candidate["scores"] = {"a": 1.0, "b": float(index)}
    split = count(write_rows("a.jsonl", rows))["splits"]["all"]
    assert [split["labels"]["a"]["models"][f"model-{j}"]["best_share"] for j in range(2)] == [0.5, 0.5]
    assert split["correlation"]["a,b"] == {"candidates": 6, "rows": 0, "pearson": None, "spearman": None}


def test_zeros_of_log_scales_and_absent_scores_are_missing_and_win_nothing(
    count: Any, make_rows: Rows, write_rows: Write
):
    rows = make_rows(4, candidates=2)
    rows[0]["candidates"][0]["scores"]["bartscore"] = 0.0
    rows[1]["candidates"][1]["scores"] = {"rougeL": None}
    for row in rows:
        row["candidates"][1]["model"] = "oasst-ft-4-pythia-12b-epoch-3.5"
    told = count(write_rows("a.jsonl", rows))
    label = told["splits"]["all"]["labels"]["bartscore"]
    assert (label["values"], label["missing"], label["zeros_taken_as_missing"]) == (6, 2, 1)
    values = [row["candidates"][0]["scores"]["bartscore"] for row in rows]
    cell = label["models"]["model-0"]
    assert (cell["values"], cell["zeros"]) == (3, 1)
    assert cell["mean"] == pytest.approx(sum(values) / 3)
    assert cell["mean_with_zeros"] == pytest.approx(sum(values) / 4)
    assert label["oracle_mean"] < 0
    assert told["repairs"]["aliased"] == {"oasst-ft-4-pythia-12b-epoch-3.5": 4}
    assert "exact zeros of log-scale scores, taken as missing: bartscore 1" in told["remarks"]


@pytest.mark.parametrize("prepared", [False, True])
def test_scores_that_are_no_numbers_and_repeated_models_are_told(
    prepared: bool, count: Any, make_rows: Rows, write_rows: Write, without_ray: None, tokenizer_folder: Path
):
    rows = make_rows(4, candidates=2)
    for row in rows[:3]:
        row["candidates"][0]["scores"]["rougeL"] = "0.5"
    rows[1]["candidates"][1]["model"] = "model-0"
    source = {"train": str(write_rows("a.jsonl", rows))}
    told = count(
        str(prepare(PrepareConfig(source, f"{source['train']}.out", str(tokenizer_folder)))) if prepared else source
    )
    assert told["repairs"]["unusable_scores"] == {"rougeL": {"text": 3}}
    assert "scores that are no numbers, taken as missing: rougeL 3 (text)" in told["remarks"]
    assert "candidates whose model has answered before in the same row: model-0 1 (kept)" in told["remarks"]


def test_sources_lengths_and_duplicates(count: Any, make_rows: Rows, write_rows: Write, tokenizer_folder: Path):
    train, test = make_rows(6, "chip"), make_rows(4, "dolly")
    train[5] |= {"id": "no-prefix", "instruction": test[0]["instruction"], "input": test[0]["input"], "output": ""}
    train[4]["id"] = train[3]["id"]
    train[0]["candidates"][1]["text"] = train[0]["candidates"][0]["text"]
    train[1]["candidates"][1]["text"] = "a\x00 " * 200
    source = {"train": str(write_rows("a.jsonl", [b"{", *train])), "test": str(write_rows("b.jsonl", test))}
    told = count(source)
    assert (told["rows"], told["rejected"], told["unit"]) == (10, {"bad_json": 1}, "words")
    assert {name: own["rows_by_split"] for name, own in told["sources"].items()} == {
        "chip": {"train": 5},
        "dolly": {"test": 4},
        "(no prefix)": {"train": 1},
    }
    assert told["sources"]["dolly"]["mean_length"]["reference"] == 8
    assert told["sources"]["(no prefix)"]["mean_length"]["reference"] is None
    assert told["duplicates"] == {"ids": 1, "prompts_within": {"train": 0, "test": 0}, "leaks": {"train": {"test": 1}}}
    assert told["splits"]["train"]["identical_candidates"] == {"rows": 1, "candidates": 1}
    assert told["splits"]["train"]["rows_without_reference"] == 1
    assert told["splits"]["train"]["truncated"] is None
    assert told["repairs"]["characters"] == {"control": 1}
    counted = count(source, tokenizer=str(tokenizer_folder))
    assert counted["unit"] == "tokens"
    assert counted["splits"]["train"]["lengths"]["candidate"]["max"] > 400
    assert counted["splits"]["train"]["truncated"]["candidate"] == {"limit": 128, "texts": 1, "share": 1 / 18}


def test_comparisons_make_a_label_of_wins(count: Any, make_rows: Rows, write_rows: Write):
    rows = make_rows(2)
    verdicts = {"model-0,model-1": "A is better", "model-1,model-2": "Same bad", "model-0,model-2": "B is better"}
    rows[0]["cmp_results"] = json.dumps(verdicts)
    split = count(write_rows("a.jsonl", rows))["splits"]["all"]
    label = split["labels"]["cmp_results"]
    assert label["rows"] == 1
    assert [label["models"][f"model-{j}"]["mean"] for j in range(3)] == [1.0, 0.5, 1.5]
    assert split["verdicts"] == {"A is better": 1, "B is better": 1, "Same bad": 1}


def test_a_prepared_set_gives_what_its_rows_give(
    without_ray: None, count: Any, make_rows: Rows, write_rows: Write, tokenizer_folder: Path, tmp_path: Path
):
    path = write_rows("a.jsonl", [*make_rows(30), b"["])
    prepare(PrepareConfig({"train": str(path)}, output=str(tmp_path / "out"), tokenizer=str(tokenizer_folder)))
    prepared, raw = count(tmp_path / "out"), count({"train": str(path)}, tokenizer=str(tokenizer_folder))
    for key in ("rows", "unit", "rejected", "sources", "duplicates"):
        assert prepared[key] == raw[key], key
    for key in ("lengths", "truncated", "models", "candidates"):
        assert prepared["splits"]["train"][key] == raw["splits"]["train"][key], key
    assert prepared["splits"]["train"]["labels"]["rougeL"]["oracle_mean"] == pytest.approx(
        raw["splits"]["train"]["labels"]["rougeL"]["oracle_mean"]
    )
    assert prepared["sources"]
    assert prepared["tokenizer"] == str(tokenizer_folder)


@pytest.mark.parametrize("manifest", [{"key": "k", "splits": {"train": {"rows": 5}}}, {"format": 1, "counts": {}}])
def test_labelled_and_collected_folders_are_read_as_rows(
    count: Any, make_rows: Rows, write_rows: Write, tmp_path: Path, manifest: dict[str, Any]
):
    folder = tmp_path / "labelled"
    (folder / "records").mkdir(parents=True)
    write_rows("a.jsonl", make_rows(5)).rename(folder / "train-00000-of-00001.jsonl")
    (folder / "records" / "quarantine.jsonl").write_text('{"file": "a.jsonl"}\n')
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = count(folder)
    assert (told["rows"], list(told["splits"]), told["rejected"]) == (5, ["train"], {})


def test_a_prepared_set_with_a_damaged_manifest_is_called_that(count: Any, tmp_path: Path):
    (tmp_path / "set" / "tokenizer").mkdir(parents=True)
    (tmp_path / "set" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest|prepare"):
        count(tmp_path / "set")


def card_rows(change: float = 0.0) -> list[dict[str, Any]]:
    """Two rows whose mean for each model and label is the card's; `change` is added to one of them."""
    card = yaml.safe_load(CARD.read_text())
    rows = []
    for offset in (-0.25, 0.25):
        candidates = []
        for model, means in card["models"].items():
            scores = {label: mean + offset for label, mean in zip(card["labels"], means, strict=True)}
            scores["bleu"] += change if model == "mpt-7b" else 0.0
            candidates.append({"model": model, "text": "t", "scores": scores})
        rows.append({"id": f"x/{offset}", "instruction": f"q{offset}", "candidates": candidates})
    return rows


@pytest.mark.parametrize(("change", "differing"), [(0.0, []), (0.1, [("mpt-7b", "bleu")])])
def test_mixinstruct_is_compared_with_its_card(
    count: Any, write_rows: Write, change: float, differing: list[tuple[str, str]]
):
    told = count({"test": str(write_rows("test.jsonl", card_rows(change)))})
    published = told["published"]
    ours = [entry for entry in published["differing"] if entry["model"] != "oracle"]
    assert [(entry["model"], entry["label"]) for entry in ours] == differing
    assert len(published["compared"]) == 12 * 8 + 8
    card = yaml.safe_load(CARD.read_text())
    best = {label: max(means[i] for means in card["models"].values()) for i, label in enumerate(card["labels"])}
    oracle = {entry["label"]: entry for entry in published["compared"] if entry["model"] == "oracle"}
    assert {label: entry["ours"] for label, entry in oracle.items()} == pytest.approx(best)
    # One model is the best of both rows here, which the card's oracle is better than.
    assert all(entry["differs"] for entry in oracle.values())
    assert published["rows"] == 2
    assert "2 rows here, 5,000 published" in published["verdict"]
    assert any("published card" in remark for remark in told["remarks"])


def test_labels_whose_zeros_a_prepared_set_lost_are_not_compared(
    without_ray: None, count: Any, write_rows: Write, tokenizer_folder: Path, tmp_path: Path
):
    rows = card_rows()
    rows[0]["candidates"][0]["scores"]["bartscore"] = 0.0
    path = str(write_rows("test.jsonl", rows))
    prepare(PrepareConfig({"test": path}, output=str(tmp_path / "out"), tokenizer=str(tokenizer_folder)))
    published = count(tmp_path / "out")["published"]
    models = [*yaml.safe_load(CARD.read_text())["models"], "oracle"]
    assert published["absent"] == [f"bartscore of {model}" for model in models]
    assert {entry["label"] for entry in published["differing"] if entry["model"] != "oracle"} == set()
    raw = count({"test": path})["published"]  # where the zero is still there, only the oracle lacks it
    assert raw["absent"] == ["bartscore of oracle"]


def test_what_the_card_has_and_the_set_has_not_is_absent_not_different(count: Any, write_rows: Write):
    rows = card_rows()
    for row in rows:
        row["candidates"] = [c for c in row["candidates"] if c["model"] != "mpt-7b"]
        for candidate in row["candidates"]:
            del candidate["scores"]["bleurt"]
    path = str(write_rows("test.jsonl", rows))
    published = count({"test": path})["published"]
    assert len(published["absent"]) == 12 + 8
    assert not [entry for entry in published["differing"] if entry["model"] != "oracle"]
    no_test = count({"train": path})
    assert no_test["published"]["compared"] == []
    assert no_test["published"]["verdict"].startswith("None of the published figures can be compared")


def test_mixinstruct_is_known_by_its_name_or_its_models():
    other = {"splits": {"test": {"models": {"a": 1}}}}
    assert not is_mixinstruct("rows.jsonl", other)
    assert is_mixinstruct("hf:llm-blender/mix-instruct@v1", other)
    assert not compare_with_card({"splits": {}}, 0.1)["compared"]


def test_the_page_is_whole_offline_and_deaf_to_the_data(
    make_rows: Rows, write_rows: Write, tmp_path: Path, capsys: pytest.CaptureFixture
):
    rows = make_rows(5)
    rows[0]["candidates"][0]["model"] = ATTACK
    rows[0]["candidates"][0]["scores"][ATTACK] = 1.0
    rows[1]["id"] = ATTACK + "/1"
    main(StatsConfig(str(write_rows("a.jsonl", rows)), str(tmp_path / "out")))
    page = (tmp_path / "out" / "report.html").read_text()
    told = json.loads((tmp_path / "out" / "stats.json").read_text())
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert ATTACK not in own
    assert "<img" not in own
    assert not re.findall(r'(?:src|href)="', own)
    drawn = [json.loads(found) for found in re.findall(r"data-figure=\"figure-\d+\">(.*?)</script>", own, flags=re.S)]
    pie = drawn[0]["data"][0]
    assert pie["type"] == "pie"
    assert sum(pie["values"]) == pytest.approx(1)
    assert len(drawn) == 5
    assert report_page(told) == page
    assert f"report: {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out


def test_rows_without_scores_have_a_page_too(count: Any, make_rows: Rows, write_rows: Write):
    rows = make_rows(3)
    for row in rows:
        for candidate in row["candidates"]:
            candidate["scores"] = {}
    told = count(write_rows("a.jsonl", rows))
    assert told["shown_label"] == ""
    assert "Lengths" in report_page(told)
    assert [table.title for table in tables(told)] == ["Rows", "Sources", "Lengths"]


def test_tables_are_aligned_text_off_a_terminal(count: Any, make_rows: Rows, write_rows: Write):
    found = tables(count(write_rows("a.jsonl", make_rows(5))))
    out = io.StringIO()
    print_tables(found, out)
    assert out.getvalue() == "".join(plain(table) + "\n" for table in found)
    for table in found:
        assert {len(row) for row in [table.head, *table.body]} == {len(table.head)}


def test_tables_are_drawn_on_a_terminal(count: Any, make_rows: Rows, write_rows: Write):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    rows = make_rows(2)
    rows[0]["candidates"][0]["model"] = "[bold]name[/bold]"
    out = Terminal()
    print_tables(tables(count(write_rows("a.jsonl", rows))), out)
    assert "───" in out.getvalue()
    assert "[bold]name[/bold]" in out.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "There is no split dev; there is all"),
        ({"label": "bleu"}, "has the label bleu; there is bartscore, rougeL"),
        ({"tolerance": 2.0}, "tolerance is 2"),
    ],
)
def test_wrong_names_are_one_sentence(
    count: Any, make_rows: Rows, write_rows: Write, settings: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        count(write_rows("a.jsonl", make_rows(2)), **settings)


def test_a_source_without_a_valid_row_says_why(count: Any, write_rows: Write):
    with pytest.raises(UserError, match=r"no valid row .*bad_json 1, missing_key 1\); for example .*a\.jsonl line 2"):
        count(write_rows("a.jsonl", [b"", b"{", b'{"instruction": "q", "candidates": [{"model": "m", "text": "t"}]}']))
    with pytest.raises(UserError, match="no valid row in the input: it holds blank lines only"):
        count(write_rows("a.jsonl", [b" "]))
    with pytest.raises(UserError, match=r"a\.jsonl is empty; give files with one JSON object a line"):
        count(write_rows("a.jsonl", []))


def test_the_command_ends_with_one_line_where_there_is_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "data_pipeline.stats", "--input", "none.jsonl", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no file at none.jsonl")
    assert done.stderr.count("\n") == 1
