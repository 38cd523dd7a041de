"""What stands beside what: systems that give a winner only, and models that are no part of the ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.urg.made_up import StubEnsemble, random_rows
from tests.urg.systems.tiny import ROWS, make_ranker
from urg.evaluation.comparison import WINNER_ONLY, compare, gaps
from urg.evaluation.oracles import Known
from urg.evaluation.paper_tables import sheets, table2
from urg.evaluation.rank_metrics import NO_NUMBER, NO_SCORES, RANK_METRICS
from urg.evaluation.results import Provenance, metrics_document, predictions_table
from urg.evaluation.statistics import Statistics
from urg.evaluation.table import cell
from urg.evaluation.text_metrics import TextMetrics
from urg.systems import SYSTEMS, Answer, Ranked, Setup, build_systems
from urg.systems.imported import Imported
from urg.systems.pair_ranker import PairRanker

FACTS: dict[str, Any] = {"split": "test", "rows": 4, "label": "quality", "generated": False}
PROVENANCE = Provenance(FACTS, {}, {}, ())


def test_one_run_of_bubble_sort_is_judged_by_its_winner_and_never_as_a_ranking(tmp_path: Path) -> None:
    model = make_ranker(PairRanker)
    model.save_pretrained(tmp_path, {name: p.detach() for name, p in model.named_parameters()})
    setup = Setup("quality", tuple("abcd"), folders={"pair_ranker": str(tmp_path)}, device="cpu")
    names = ("pair_ranker", "pair_ranker_bubble")
    result = compare(ROWS, "quality", [SYSTEMS[name](setup) for name in names], TextMetrics())
    document = metrics_document(result, PROVENANCE)
    full, bubble = (document["systems"][name] for name in names)
    assert set(RANK_METRICS) & bubble.keys() == {"hit@1"}
    assert set(RANK_METRICS) <= full.keys()
    assert {"label", "rougeL"} <= bubble.keys()
    for metric in RANK_METRICS.keys() - {"hit@1"}:
        assert document["missing"][f"pair_ranker_bubble.{metric}"] == WINNER_ONLY
    own = result.get("pair_ranker_bubble")
    assert own is not None
    assert all(answer is not None and answer.scores is None and answer.picked is not None for answer in own.answers)
    best = [row.scores["quality"][a.picked] == np.nanmax(row.scores["quality"])
            for row, a in zip(ROWS, own.answers, strict=True) if a is not None]  # fmt: skip
    assert bubble["hit@1"] == np.mean([best[0], best[3]])  # rows 2 and 3 have nothing to tell apart
    assert [cell(own, metric) for metric in ("mrr", "ndcg", "spearman", "kendall", "pearson")] == ["–"] * 5


def test_a_closed_model_is_no_single_model_of_the_ensemble() -> None:
    rows = random_rows(12)
    perfect = Imported("imported", Path("chatgpt.jsonl"), {row.id: row.output for row in rows})
    systems, _ = build_systems(Setup("quality", rows[0].models, ensemble=StubEnsemble()))  # type: ignore[arg-type]
    with_it, without = (compare(rows, "quality", s, TextMetrics()) for s in ([*systems, perfect], systems))
    assert [gap.best_model for gap in gaps(with_it)] == [gap.best_model for gap in gaps(without)]
    assert gaps(with_it) == gaps(without)
    document = metrics_document(with_it, PROVENANCE)
    assert document["kinds"]["imported"] == "closed"
    assert document["systems"]["imported"]["rougeL"] == pytest.approx(1.0)
    assert "new text, not a candidate" in document["missing"]["imported.label"]
    closed = next(
        g for g in sheets(with_it, PROVENANCE, Statistics({}, {}, ""))[1].groups if g.name.startswith("Closed")
    )
    assert closed.lines[0].cells[0] == "imported"


def test_a_row_that_a_ranker_scores_by_no_number_has_no_rank_metrics_and_the_system_is_named() -> None:
    rows = random_rows(4)
    good = {row.id: np.array([1.0, 2.0, 3.0, 4.0]) for row in rows}
    some = good | {"row/0": np.array([1.0, np.nan, 3.0, 4.0]), "row/1": np.full(4, np.nan)}
    never = {row.id: np.array([np.inf, np.nan, 3.0, 4.0]) for row in rows}
    named = {"decided": good, "undecided": some, "lost": never}
    systems = [Ranked(name, "ranker", Known(scores)) for name, scores in named.items()]
    result = compare(rows, "quality", systems, TextMetrics())
    document = metrics_document(result, PROVENANCE.with_notes(result))
    decided, undecided, lost = (result.get(name) for name in named)
    assert decided is not None
    assert undecided is not None
    assert lost is not None
    for metric in RANK_METRICS:
        assert np.isnan(undecided.values[metric]).tolist() == [True, True, False, False]
        assert undecided.means[metric] == pytest.approx(decided.values[metric][2:].mean())
        assert metric not in lost.means
        assert document["missing"][f"lost.{metric}"] == f"in every row: {NO_NUMBER}"
    assert undecided.means["label"] == pytest.approx(np.mean([rows[i].scores["quality"][3] for i in (0, 2, 3)]))
    assert document["left_out"]["undecided"]["spearman"] == {NO_NUMBER: 1, NO_SCORES: 1}
    assert document["notes"] == [
        "undecided answered 3 of 4 rows; its means are over these.",
        "undecided gave 1 rows scores that are no numbers: no rank metrics there.",
        "lost gave 4 rows scores that are no numbers: no rank metrics there.",
    ]


def test_every_systems_texts_are_scored_in_one_go() -> None:
    """Where actors score, each further one would load the metrics' models again."""
    rows, seen = random_rows(6), list[tuple[str, int, int]]()
    systems, _ = build_systems(Setup("quality", rows[0].models, ensemble=StubEnsemble()))  # type: ignore[arg-type]
    result = compare(rows, "quality", systems, TextMetrics(progress=lambda *step: seen.append(step)), ceilings=True)
    pairs = {(text, row.output) for row in rows for text in row.texts}
    answered = ((answer, row) for one in result.results for answer, row in zip(one.answers, rows, strict=True))
    pairs |= {(answer.text, row.output) for answer, row in answered if answer is not None}
    assert seen == [("rouge", len(pairs), len(pairs)), ("bleu", len(pairs), len(pairs))]


def test_predictions_say_which_candidates_were_fused() -> None:
    rows = random_rows(4)
    systems, _ = build_systems(Setup("quality", rows[0].models, ensemble=StubEnsemble(k=2)))  # type: ignore[arg-type]
    result = compare(rows, "quality", systems, TextMetrics())
    fused = [line for line in predictions_table(result).to_pylist() if line["system"] == "urg"]
    assert [tuple(line["used"]) for line in fused] == [a.used for a in result.get("urg").answers]  # type: ignore[union-attr]
    assert all(len(line["used"]) == 2 for line in fused)


def test_a_system_with_few_of_the_rows_is_never_the_best_of_its_group() -> None:
    rows = random_rows(10)

    class Few:
        name, kind = "few", "fuser"

        def answer(self, rows: Any) -> list[Answer | None]:
            return [Answer(rows[0].output), *[None] * (len(rows) - 1)]

    systems, _ = build_systems(Setup("quality", rows[0].models, ensemble=StubEnsemble()))  # type: ignore[arg-type]
    result = compare(rows, "quality", [*systems, Few()], TextMetrics())  # type: ignore[list-item]
    (group,) = (g for g in table2(result, "here").groups if g.name == "generation-based")
    marked = {line.cells[0]: line.best for line in group.lines if line.cells[0] != "–"}
    assert not marked["few"]
    assert marked["urg"]
