"""Tables in their four forms, the published figures, and how ours stand beside them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from tests.urg.made_up import StubEnsemble, random_rows, row
from urg.evaluation.comparison import Comparison, compare
from urg.evaluation.config import StatisticsConfig
from urg.evaluation.paper_tables import differences, is_mixinstruct, poster, published, sheets, table2
from urg.evaluation.results import Provenance
from urg.evaluation.sheet import Group, Line, Sheet, as_html, as_json, latex, markdown, plain
from urg.evaluation.statistics import statistics
from urg.evaluation.text_metrics import TextMetrics
from urg.systems import Setup, build_systems

OA, VICUNA = "oasst-sft-4-pythia-12b-epoch-3.5", "vicuna-13b-1.1"
VERDICTS = {f"{OA},{VICUNA}": "A is better"}


def compared(rows: list, label: str = "quality") -> Comparison:  # type: ignore[type-arg]
    models = tuple(sorted({name for made in rows for name in made.models}))
    systems, unavailable = build_systems(Setup(label=label, models=models, ensemble=StubEnsemble()))  # type: ignore[arg-type]
    return compare(rows, label, systems, TextMetrics(), unavailable, ceilings=True)


def mixinstruct() -> Comparison:
    rows = [
        row(str(i), ["a b", "c d", "a c"], [OA, VICUNA, "new-model"], "a b", quality=[1.0, 0.0, 0.5]) for i in range(3)
    ]
    return compared([type(made)(**(vars(made) | {"cmp_results": VERDICTS})) for made in rows])


SHEET = Sheet(
    "50 % of a_b",
    ("who", "x", "y"),
    (Group("G & co", (Line(("<b>|*", "1", "2"), frozenset({2})), Line(("$b{", "10", "–")))),),
    (("", 1), ("ours", 2)),
    ("a #note",),
)


def test_every_form_keeps_every_cell_and_escapes_what_is_markup() -> None:
    assert plain(SHEET).splitlines()[1:] == ["who     x   y", "[G & co]", "<b>|*   1  2*", "$b{    10   –", "  a #note"]
    assert r"| \<b\>\|\* | 1 | **2** |" in markdown(SHEET)
    assert "ours: x" in markdown(SHEET)
    assert as_json(SHEET)["columns"] == ["who", "ours: x", "ours: y"]
    assert as_json(SHEET)["groups"][0]["rows"] == [["<b>|*", "1", "2"], ["$b{", "10", "–"]]
    tex = latex(SHEET)
    assert r"$<$b$>$|* & 1 & \textbf{2} \\" in tex
    assert r"\$b\{ & 10 & -- \\" in tex
    assert r"\caption{50 \% of a\_b}" in tex
    assert r"\multicolumn{2}{c}{ours}" in tex
    page = as_html(SHEET)
    assert "&lt;b&gt;|*" in page
    assert "<td><b>2</b></td>" in page
    opened: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: opened.append(tag)  # type: ignore[method-assign]
    parser.handle_endtag = lambda tag: opened.remove(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert not opened


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="columns"):
        Sheet("t", ("a", "b"), (Group("", (Line(("1",)),)),))


def test_published_figures_are_complete_and_as_printed() -> None:
    tables = published()
    table = tables["urg"]["table2"]
    assert [group["name"] for group in table["groups"]] == [
        "Open-Source LLMs", "Closed-Source LLMs", "selection-based", "generation-based",
    ]  # fmt: skip
    assert [len(group["rows"]) for group in table["groups"]] == [12, 1, 6, 5]
    for name in ("table3", "table4", "table5", "table6", "table7"):
        assert all(len(r["values"]) == len(tables["urg"][name]["columns"]) for r in tables["urg"][name]["rows"])
    for group in [*table["groups"], *tables["llm_blender"]["poster"]["groups"]]:
        columns = table["columns"] if group in table["groups"] else tables["llm_blender"]["poster"]["columns"]
        assert all(len(printed["values"]) == len(columns) for printed in group["rows"])
    (best,) = (printed for printed in table["groups"][3]["rows"] if printed["name"] == "URG (3B)")
    assert best["values"] == [0.8045, -2.8901, -0.1755, 0.4632, 0.2538, 16.59, 0.3727]
    speeds = {r["name"]: r["values"] for r in tables["urg"]["table4"]["rows"]}
    assert speeds["URG (3B)"][4] == pytest.approx(3 * speeds["URG (3B)"][3], abs=1e-3)  # Norm is size × speed
    assert any("Table 3" in slip for slip in tables["urg"]["slips"])


def test_table2_has_the_papers_order_and_never_mixes_published_figures_into_ours() -> None:
    result = mixinstruct()
    assert is_mixinstruct(result)
    sheet = table2(result, "here")
    assert [group.name for group in sheet.groups][:4] == [
        "Open-Source LLMs", "Closed-Source LLMs", "selection-based", "generation-based",
    ]  # fmt: skip
    assert sheet.spans[1:] == (("ours", 7), ("published", 8))
    models = {line.cells[8]: line for line in sheet.groups[0].lines}
    assert models["Oasst-12b"].cells[0] == OA
    assert models["Oasst-12b"].cells[4] == "1.0000"  # our rouge1
    assert models["Oasst-12b"].cells[1] == "–"  # no BERTScore of ours, although one was published
    assert models["Oasst-12b"].cells[9] == "0.7468"
    assert models["MPT"].cells[:8] == ("–",) * 8
    assert sheet.groups[0].lines[-1].cells[0] == "new-model"  # ours, which the paper does not have
    assert sheet.groups[0].lines[-1].cells[8:] == ("–",) * 8
    assert [line.cells[8] for line in sheet.groups[2].lines][:6] == [
        "random", "SummaReranker", "SimCLS", "PairRanker", "URG-rank (770M)", "URG-rank (3B)",
    ]  # fmt: skip
    names = [line.cells[0] for group in sheet.groups for line in group.lines if line.cells[0] != "–"]
    assert sorted(names) == sorted(each.name for each in result.results)


@pytest.mark.parametrize(
    ("parameters", "size"),
    [(783_150_080, "770M"), (2_849_757_184, "3B"), (247_577_856, None), (6_000_000_000, None), (None, None)],
    ids=["large", "xl", "base", "twice xl", "unknown"],
)
def test_our_urg_stands_beside_the_published_one_of_its_size_only(parameters: int | None, size: str | None) -> None:
    sheet = table2(compared(random_rows(4)), "here", parameters=parameters)
    beside = {line.cells[0]: line.cells[8] for group in sheet.groups for line in group.lines}
    assert beside["urg"] == (f"URG ({size})" if size else "–")
    assert beside["urg_rank"] == (f"URG-rank ({size})" if size else "–")
    printed = [line.cells[8] for group in sheet.groups for line in group.lines]
    assert {"URG (770M)", "URG (3B)", "URG-rank (770M)", "URG-rank (3B)"} <= set(printed)


def test_the_posters_table_has_the_judges_metrics() -> None:
    sheet = poster(mixinstruct(), "here")
    rows = {line.cells[7]: line.cells for group in sheet.groups for line in group.lines}
    assert sheet.head[1:7] == ("bertscore", "bartscore", "bleurt", "gpt_rank", "beat_vic", "beat_oa")
    assert rows["Open Assistant"][:7] == (OA, "–", "–", "–", "1.00", "100.00", "–")  # as published: not of itself
    assert rows["Open Assistant"][8:] == ("74.68", "-3.49", "-0.41", "3.90", "63.09", "–")
    assert rows["Vicuna"][4:7] == ("3.00", "–", "0.00")  # the third model, which nobody compared, stands between
    assert rows["PairRanker (K = 3) + GenFuser"][0] == "–"
    assert rows["Oracle (ChatGPT as Ranker)"][:7] == (
        "oracle_judge",
        "–",
        "–",
        "–",
        "1.00",
        "100.00",
        "0.00",
    )  # picks OA
    notes = " ".join(sheet.notes)
    assert "compared with none stands at 0" in notes
    assert "by rank, which metrics.json has as beat_vic_rank" in notes


def test_the_papers_tables_have_our_intervals_where_they_are_written_and_in_the_metrics_unit() -> None:
    result = mixinstruct()
    stats = statistics(result, StatisticsConfig(trials=0), 0)
    low, high = stats.intervals["new-model"]["rouge1"]
    (ours,) = (line for line in table2(result, "here", stats).groups[0].lines if line.cells[0] == "new-model")
    assert ours.cells[4] == f"{result.get('new-model').means['rouge1']:.4f} [{low:.4f}, {high:.4f}]"  # type: ignore[union-attr]
    assert ours.cells[8:] == ("–",) * 8
    result.get(OA).means["bertscore"], result.get(OA).counts["bertscore"] = 0.5, 3  # type: ignore[union-attr]
    stats.intervals[OA]["bertscore"] = (0.25, 0.75)
    rows = {line.cells[0]: line.cells for group in poster(result, "here", stats).groups for line in group.lines}
    assert rows[OA][1] == "50.00 [25.00, 75.00]"


def test_differences_are_antisymmetric_and_starred() -> None:
    result = compared(random_rows(40))
    stats = statistics(result, StatisticsConfig(trials=20000, pairs="urg_rank:random,random:longest"), 0)
    sheet = differences(result, stats, "label")
    cells = by_pair(sheet)
    assert sheet.head == ("", "urg_rank", "random")  # held against others
    assert {line.cells[0] for line in sheet.groups[0].lines} == {"random", "longest"}
    assert cells["urg_rank", "random"].startswith("+")
    assert cells["urg_rank", "random"].endswith("***")
    assert cells["urg_rank", "longest"] == ""  # not asked
    assert sheet.title.endswith("column minus row")
    assert "over the 2 pairs of this table" in sheet.notes[0]
    every = by_pair(differences(result, statistics(result, StatisticsConfig(trials=200, pairs="all"), 0), "label"))
    both = [pair for pair in every if pair[::-1] in every and pair[0] != pair[1]]
    assert both
    for one, other in both:
        assert every[one, other].strip("+−*") == every[other, one].strip("+−*")
        signs = {every[one, other][0], every[other, one][0]}
        assert signs == {"+", "−"} or every[one, other] == "+0.0000"  # urg_rank reaches the oracle
    named = {frozenset(pair) for pair, text in every.items() if text}
    picking = [each.name for each in result.results if "label" in each.means and not each.name.startswith("oracle_")]
    assert len(named) == len(picking) * (len(picking) - 1) / 2  # each pair has its cell
    titles = [each.title for each in sheets(result, Provenance({"split": "s", "rows": 1, "label": "l", "generated": 0},
                                                              {}, {}, ()), stats)]  # fmt: skip
    assert [title.split(":")[0] for title in titles] == [
        "All systems", "Table 2", "LLM-Blender's table",
        *(f"Differences in {metric}" for metric in ("label", "hit@1", "ndcg", "spearman", "rougeL", "bleu")),
    ]  # fmt: skip
    assert not is_mixinstruct(result)


def by_pair(sheet: Sheet) -> dict[tuple[str, str], str]:
    """(column, row) → cell."""
    lines = [line.cells for group in sheet.groups for line in group.lines]
    return {(own, row): text for row, *cells in lines for own, text in zip(sheet.head[1:], cells, strict=True)}
