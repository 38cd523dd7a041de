"""The report: self-contained, complete, and deaf to whatever the data try to say in HTML."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from data_pipeline.shards import TokenizedExample
from tests.urg.made_up import StubEnsemble, random_rows, row
from urg.evaluation.comparison import Comparison, compare
from urg.evaluation.report import report_page
from urg.evaluation.report_cases import SHOWN_CHARACTERS, choose_cases
from urg.evaluation.report_figures import figures, ranks, scored_candidates
from urg.evaluation.results import Provenance
from urg.evaluation.text_metrics import TextMetrics
from urg.systems import Setup, build_systems

ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)> & </div> "quoted"'


def compared(
    rows: list[TokenizedExample], label: str = "quality", model: bool = True, noise: float = 0.5
) -> Comparison:
    models = tuple(sorted({name for made in rows for name in made.models}))
    ensemble = StubEnsemble(noise=noise) if model else None
    systems, unavailable = build_systems(Setup(label=label, models=models, ensemble=ensemble))  # type: ignore[arg-type]
    return compare(rows, label, systems, TextMetrics(), unavailable)


def provenance(label: str = "quality", rows: int = 0, notes: tuple[str, ...] = ()) -> Provenance:
    data = {"split": "test", "rows": rows, "label": label, "generated": False, "shards": "/data/x"}
    return Provenance(data, {"folder": "/model", "trained": True}, {"seed": 0}, notes)


class Page(HTMLParser):
    """The elements, attributes and figures of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[dict] = []  # type: ignore[type-arg]
        self._open: list[str] = []
        self.feed(page)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        _, attributes = self.tags[-1] if self.tags else ("", {})
        if self._open and self._open[-1] == "script" and attributes.get("type") == "application/json":
            self.figures.append(json.loads(data))


def test_page_is_whole_and_needs_no_network() -> None:
    text = report_page(compared(random_rows(12)), provenance(rows=12))
    page = Page(text)
    assert not [tag for tag, attributes in page.tags if {"src", "href"} & attributes.keys()]
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe")]
    assert text.count("plotly.js v") == 1  # inlined, and once
    assert len(page.figures) == 4
    for expected in ("Best single model", "URG top-1 pick", "URG fused text", "Oracle pick", "All systems", "Cases"):
        assert expected in text


def test_nothing_from_the_data_becomes_html() -> None:
    label = "<b>label</b>"
    rows = [
        row(f"{ATTACK}{index}", [ATTACK, "fine"], [f"m{ATTACK}", "n"], ATTACK, ATTACK, **{label: [0.1, 0.2 + index]})
        for index in range(4)
    ]
    clean = [row(f"{i}", ["t", "fine"], ["m", "n"], "r", "q", label=[0.1, 0.2 + i]) for i in range(4)]
    attacked = report_page(compared(rows, label), provenance(label, 4, (ATTACK,)))
    expected = report_page(compared(clean, "label"), provenance("label", 4, ("note",)))
    assert "<script>alert" not in attacked
    assert "<img" not in attacked
    assert "<b>label" not in attacked
    assert "&lt;script&gt;alert(&quot;x&quot;)" in attacked
    assert sorted({tag for tag, _ in Page(attacked).tags}) == sorted({tag for tag, _ in Page(expected).tags})
    drawn = json.dumps(Page(attacked).figures).replace("<extra></extra>", "")  # our own, in the hover text
    assert "<" not in drawn
    assert "&lt;b&gt;label" in drawn


def test_figures_say_what_the_data_say() -> None:
    rows = [
        row("1", ["right right", "wrong wrong"], ["a", "b"], "right right", quality=[1.0, 0.0]),
        row("2", ["wrong wrong", "right right"], ["a", "b"], "right right", quality=[1.0, 1.0]),
        row("3", ["right right", "wrong wrong"], ["a", "b"], "right right", quality=[0.0, float("nan")]),
    ]
    result = compared(rows, noise=0.0)
    boxes, picked, by_rank, by_share = figures(result)
    scored = scored_candidates(result)
    assert scored is not None
    assert scored.share.reshape(3, 2).mean(axis=1) == pytest.approx([1, 1, 1])
    assert boxes.data[0]["y"] == ["b", "a"]  # a has the higher median: two of three
    best_bars, pick_bars = (dict(zip(bar["y"], bar["x"], strict=True)) for bar in picked.data)
    assert pick_bars == pytest.approx({"a": 200 / 3, "b": 100 / 3})
    assert best_bars == pytest.approx({"a": 100 * (1 + 0.5 + 1) / 3, "b": 100 * 0.5 / 3})  # a tie is shared
    ours, ideal, flat = by_rank.data
    assert ours["y"] == pytest.approx([(1 + 1 + 0) / 3, (0 + 1) / 2])
    assert ideal["y"] == pytest.approx([(1 + 1 + 0) / 3, (0 + 1) / 2])
    assert flat["y"] == pytest.approx([0.6, 0.6])
    assert np.all(np.diff(by_share.data[0]["x"]) >= 0)
    assert len(by_share.data[0]["x"]) == 5


def test_ranks_break_ties_by_position() -> None:
    assert ranks(np.array([0.1, 0.5, 0.5, 0.9])).tolist() == [4, 2, 3, 1]


def test_cases_show_the_best_the_worst_and_some_at_random() -> None:
    result = compared(random_rows(40))
    fused, oracle = result.get("urg"), result.get("oracle")
    assert fused
    assert oracle
    chosen = choose_cases(result, 9)
    margin = fused.values["rougeL"] - oracle.values["rougeL"]
    assert len({index for index, _ in chosen}) == 9
    assert sorted(margin[[index for index, _ in chosen[:3]]]) == pytest.approx(sorted(margin)[-3:])
    assert sorted(margin[[index for index, _ in chosen[3:6]]]) == pytest.approx(sorted(margin)[:3])
    assert {why for _, why in chosen[6:]} == {"drawn at random"}
    assert chosen == choose_cases(result, 9)
    assert len(choose_cases(compared(random_rows(4)), 9)) == 4
    assert choose_cases(result, 0) == []


def test_a_case_marks_order_fused_candidates_and_best_label_and_cuts_long_text() -> None:
    long = "right " * 1000
    rows = [row("only", ["wrong", long, "right"], ["a", "b", "c"], "right", quality=[0.0, 0.5, 1.0])]
    text = report_page(compared(rows, noise=0.0), provenance(rows=1))
    case = text[text.index("<h2>Cases") :]
    names = re.findall(r"<b>(\d)\. (\w)</b>", case)
    assert names == [("1", "b"), ("2", "c"), ("3", "a")]
    assert case.count('class="tag used"') == 2
    assert case.count('class="tag best"') == 1
    assert f"({len(long) - SHOWN_CHARACTERS:,} more characters)" in case


@pytest.mark.parametrize("model", [True, False])
def test_pages_of_poor_data_are_whole(model: bool) -> None:
    """No reference, a missing label, one candidate, an empty text; with and without a model."""
    rows = [row("1", ["", "b"], quality=[float("nan"), -3.5]), row("2", ["a"], quality=[float("nan")])]
    text = report_page(compared(rows, model=model), provenance(rows=2))
    page = Page(text)
    assert "(empty)" in text
    assert "nan" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL).lower()
    assert len(page.figures) == (4 if model else 0)
    assert ("plotly.js v" in text) == model
    assert "no row has a reference text" in text
