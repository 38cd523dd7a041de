"""The rows of `python -m urg.ensemble`: a JSON line in, its ranking and fused text out, and what a run says of all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_pipeline.cleaning import parse_line
from data_pipeline.errors import RowError
from data_pipeline.schema import encodable
from urg.config import EnsembleConfig
from urg.ensemble import Query

if TYPE_CHECKING:
    from urg.ensemble import Ensemble


BATCHES_AT_ONCE = 4
"""Batches that are answered together: the next can be tokenized meanwhile, and each be of queries of like length. A
killed command repeats at most so many."""


def lines_at_once(config: EnsembleConfig) -> int:
    """Lines that are answered, and then written, together."""
    return BATCHES_AT_ONCE * config.batch_size


def answer_rows(
    ensemble: Ensemble, config: EnsembleConfig, lines: Iterable[bytes], out: IO[bytes], skip: int = 0
) -> None:
    """Write a line for each line, in order. skip: lines that have theirs already."""
    numbered = islice(enumerate(lines, start=1), skip, None)
    while batch := list(islice(numbered, lines_at_once(config))):
        parsed = [_parse(line, number) for number, line in batch]
        answers = iter(_answer(ensemble, config, [query for _, query in parsed if isinstance(query, Query)]))
        for row_id, query in parsed:
            result = next(answers) if isinstance(query, Query) else query
            out.write(encodable(json.dumps({"id": row_id, **result}, ensure_ascii=False)).encode() + b"\n")
        out.flush()


def _parse(line: bytes, number: int) -> tuple[Any, Query | dict[str, str]]:
    """(id, query), or (id, what is wrong with the row). A row without an id gets its line number."""
    row_id: Any = str(number)
    try:
        row = parse_line(line)
        row_id = str(number) if row.get("id") is None else row["id"]
        return row_id, _query(row)
    except RowError as error:
        return row_id, {"error": f"line {number}: {error}", "reason": error.reason}


def _query(row: dict[str, Any]) -> Query:
    """The query of a row. Raises RowError: no_candidates, bad_candidate, no_question."""
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise RowError("no_candidates", "the row has no candidates: give a list with at least one answer.")
    texts = tuple(c.get("text") if isinstance(c, dict) else c for c in candidates)
    if not all(isinstance(text, str) for text in texts):
        raise RowError("bad_candidate", "a candidate is neither a text nor an object with a text.")
    instruction, input = row.get("instruction") or "", row.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(input, str) or not (instruction or input):
        raise RowError("no_question", "the row has no question: give instruction or input as a text.")
    return Query(instruction, tuple(map(str, texts)), input)


def _answer(ensemble: Ensemble, config: EnsembleConfig, queries: list[Query]) -> list[dict[str, Any]]:
    if not queries:
        return []
    if config.rank_only:
        return [{"scores": r.scores, "order": r.order, "cut": r.cut} for r in ensemble.rank_batch(queries)]
    fused = ensemble.rank_and_fuse_batch(queries, config.k, config.num_beams, config.max_new_tokens, config.k_gap)
    return [
        {"text": f.text, "scores": f.ranking.scores, "order": f.ranking.order, "used": f.used, "cut": f.ranking.cut}
        for f in fused
    ]


def summarize(output: Path) -> tuple[int, str]:
    """How many rows of a whole output were answered, and what to say of all of them."""
    reasons: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    cuts = []
    with output.open("rb") as lines:
        for row in map(json.loads, lines):
            ids[json.dumps(row["id"])] += 1
            reasons.update([row["reason"]] if "error" in row else [])
            cuts.append(row.get("cut", 0))
    answered = len(cuts) - reasons.total()
    named = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    said = [
        f"{len(cuts)} rows: {answered} answered, {reasons.total()} with an error{f' ({named})' if named else ''}, "
        f"in {output}"
    ]
    if any(cuts):
        said.append(f"{sum(cuts)} texts in {sum(map(bool, cuts))} rows were cut to the model's length (see cut).")
    if repeated := ids.total() - len(ids):
        said.append(f"{repeated} rows have the id of an earlier row.")
    return answered, "\n".join(said)
