"""Systems: which candidate each picks, and that none depends on the order or the presence of other rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards import TokenizedExample
from urg.ensemble import Fused, Query, Ranking
from urg.systems import FOLDERS, SYSTEMS, FusedBy, Fusion, Ranked, Scores, Setup, SystemUnavailable, build_systems

NAN = float("nan")
NO_TOKENS = np.zeros(0, dtype=np.int32)


def row(
    row_id: str, texts: Sequence[str], models: Sequence[str] = "abcdefgh", **scores: list[float]
) -> TokenizedExample:
    arrays = {name: np.array(values) for name, values in scores.items()}
    responses = tuple(NO_TOKENS for _ in texts)
    models = tuple(models[: len(texts)])
    return TokenizedExample(row_id, "q", "", "", models, tuple(texts), arrays, None, NO_TOKENS, responses, NO_TOKENS)


ROWS = [
    row("1", ["one", "three", "five"], quality=[0.1, 0.9, 0.5]),
    row("2", ["", "a much longer text", "short"], quality=[NAN, -3.0, -2.0]),
    row("3", ["x"], models="c", quality=[NAN]),
]


class Stub:
    """Ranks the first candidate top; counts calls."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.options: list[dict[str, Any]] = []
        self.k, self.writes = 2, True

    def rank_batch(self, queries: Sequence[Query]) -> list[Ranking]:
        return [self._fused(query).ranking for query in queries]

    def rank_and_fuse_batch(self, queries: Sequence[Query], **options: Any) -> list[Fused]:
        self.queries.extend(queries)
        self.options.append(options)
        return [self._fused(query) for query in queries]

    def _fused(self, query: Query) -> Fused:
        weights = np.arange(len(query.candidates), 0, -1.0)
        scores = tuple((weights / weights.sum()).tolist())
        return Fused("+".join(query.candidates), Ranking(scores, tuple(range(len(scores)))), used=(0,))


def setup(**changes: Any) -> Setup:
    return Setup(**({"label": "quality", "models": ("a", "b", "c")} | changes))


def picks(name: str, rows: Sequence[TokenizedExample] = ROWS, **changes: Any) -> list[int | None]:
    systems = {system.name: system for system in build_systems(setup(**changes))[0]}
    return [None if answer is None else answer.picked for answer in systems[name].answer(rows)]


def test_each_single_model_answers_where_it_has_a_candidate() -> None:
    assert picks("a") == [0, 0, None]
    assert picks("c") == [2, 2, 0]


def test_a_model_named_as_a_system_keeps_its_own_row() -> None:
    names = [system.name for system in build_systems(setup(models=("a", "random", "urg"), ensemble=Stub()))[0]]
    ours = ["random", "longest", "urg_rank", "urg_random_k", "urg", "oracle"]
    assert names == ["a", "model:random", "model:urg", *ours]


def test_longest_counts_characters_without_surrounding_blanks() -> None:
    assert picks("longest") == [1, 1, 0]
    assert picks("longest", [row("1", ["   \n    ", "abc", "xyz"])]) == [1]  # ties: the first


def test_oracle_takes_the_best_label_and_never_a_missing_one() -> None:
    assert picks("oracle") == [1, 2, None]
    assert picks("oracle", label="absent") == [None, None, None]


def test_random_is_seeded_by_row_and_independent_of_order_and_company() -> None:
    many = [row(str(index), list("abcdefgh")) for index in range(400)]
    forward = picks("random", many)
    assert picks("random", many[::-1]) == forward[::-1]
    assert picks("random", many[37:38]) == forward[37:38]
    assert picks("random", many, seed=1) != forward
    counts = np.bincount([pick for pick in forward if pick is not None], minlength=8)
    assert counts.min() >= 25
    assert counts.max() <= 80


def test_urg_and_urg_rank_share_one_pass() -> None:
    stub = Stub()
    systems, unavailable = build_systems(setup(ensemble=stub, num_beams=2, max_new_tokens=7))
    answers = {system.name: system.answer(ROWS) for system in systems if system.name in ("urg", "urg_rank")}
    assert not {"urg", "urg_rank"} & unavailable.keys()
    assert [query.candidates for query in stub.queries] == [tuple(made.texts) for made in ROWS]  # each row once
    assert stub.options == [{"num_beams": 2, "max_new_tokens": 7}]
    ranked, fused = answers["urg_rank"][0], answers["urg"][0]
    assert ranked is not None
    assert fused is not None
    assert (ranked.picked, ranked.text) == (0, "one")
    assert (fused.picked, fused.text, fused.used) == (None, "one+three+five", (0,))
    assert fused.scores is not None
    assert ranked.scores is not None
    assert fused.scores.tolist() == ranked.scores.tolist()


def test_nothing_is_written_where_only_the_ranking_is_asked() -> None:
    stub = Stub()
    answers = SYSTEMS["urg_rank"](setup(ensemble=stub, rank_only=True)).answer(ROWS)
    assert [answer and answer.picked for answer in answers] == [0, 0, 0]
    assert not stub.queries


def test_a_model_that_was_trained_to_rank_alone_ranks_and_says_why_it_does_not_fuse() -> None:
    stub = Stub()
    stub.writes = False
    systems, unavailable = build_systems(setup(ensemble=stub))
    assert "urg_rank" in {system.name for system in systems}
    for name in ("urg", "urg_random_k"):
        assert "trained to rank alone" in unavailable[name]


def test_without_ranking_the_fused_candidates_are_those_that_random_puts_first() -> None:
    stub = Stub()
    systems = {system.name: system for system in build_systems(setup(ensemble=stub, num_beams=1))[0]}
    answers, picked = systems["urg_random_k"].answer(ROWS), picks("random")
    assert [answer and answer.used[0] for answer in answers] == picked
    for answer, made, query in zip(answers, ROWS, stub.queries, strict=True):
        assert answer is not None
        assert len(set(answer.used)) == min(2, len(made.texts))
        assert query.candidates == tuple(made.texts[i] for i in answer.used)
    assert stub.options == [{"k": 2, "num_beams": 1, "max_new_tokens": None}]  # K as such: no gap of URG's own scores


def test_urg_without_a_model_is_left_out_with_the_reason() -> None:
    systems, unavailable = build_systems(setup(no_ensemble="there is no checkpoint"))
    assert [unavailable[name] for name in ("urg_rank", "urg")] == ["there is no checkpoint"] * 2
    assert {system.name for system in systems} == {"a", "b", "c", "random", "longest", "oracle"}
    with pytest.raises(SystemUnavailable, match="--model"):
        SYSTEMS["urg"](setup())


def test_a_system_without_its_folder_is_left_out_and_told_where_its_need_stands() -> None:
    _, unavailable = build_systems(setup(folders={}))
    assert unavailable.keys() == SYSTEMS.keys() - {"random", "longest", "oracle"}
    assert "--folders.NAME; --list" in unavailable["simcls"]
    assert "urg.train --system simcls" in FOLDERS["simcls"]  # what --list prints
    with pytest.raises(UserError, match="no system takes a folder named pairranker; those that do: mlm_scoring"):
        build_systems(setup(folders={"pairranker": "x"}))


class ByHand:
    """A ranker and a fuser with given answers."""

    def __init__(self, scores: list[Scores | None]) -> None:
        self.scores = scores

    def rank(self, rows: Sequence[TokenizedExample]) -> list[Scores | None]:
        return self.scores

    def fuse(self, rows: Sequence[TokenizedExample], scores: Sequence[Scores]) -> list[Fusion]:
        return [Fusion(f"{made.id}:{len(given)}", (1,)) for made, given in zip(rows, scores, strict=True)]


def test_any_ranker_joins_any_fuser_and_rows_that_it_cannot_rank_stay_in_place() -> None:
    by_hand = ByHand([np.array([0.0, 2.0, 1.0]), None, np.array([5.0])])
    fused = FusedBy("blend", ranker=by_hand, fuser=by_hand).answer(ROWS)
    assert [answer and answer.text for answer in fused] == ["1:3", None, "3:1"]
    ranked = Ranked("by_hand", "ranker", by_hand).answer(ROWS)
    assert [answer and answer.text for answer in ranked] == ["three", None, "x"]


def test_a_row_whose_scores_are_all_no_numbers_is_not_answered() -> None:
    by_hand = ByHand([np.array([NAN, NAN, NAN]), np.array([NAN, 2.0, 1.0])])
    assert [answer and answer.picked for answer in Ranked("by_hand", "ranker", by_hand).answer(ROWS[:2])] == [None, 1]
    fused = FusedBy("blend", ranker=by_hand, fuser=by_hand).answer(ROWS[:2])
    assert [answer and answer.text for answer in fused] == [None, "2:3"]


def test_scores_that_are_not_one_a_candidate_are_refused() -> None:
    with pytest.raises(ValueError, match="by_hand gave row 1 with 3 candidates"):
        Ranked("by_hand", "ranker", ByHand([np.array([1.0, 2.0])])).answer(ROWS[:1])
