"""Use a trained URG: candidates in, ranking and fused text out.

    from urg import Ensemble
    urg = Ensemble.from_pretrained("runs/sample/model")
    fused = urg.rank_and_fuse("Name a prime.", ["7", "9 is a prime.", "Two is one."])
    fused.text, fused.ranking.order, fused.used

From the shell, JSON lines in and out, one line out for each line in, in order:
    python -m urg.ensemble --model runs/sample/model --input rows.jsonl --output out.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_pipeline.cli import run_command
from data_pipeline.errors import RowError, UserError
from urg.config import EnsembleConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from urg.layout import Layout
    from urg.model import URG


@dataclass(frozen=True)
class Query:
    """An instruction and its candidate answers."""

    instruction: str
    candidates: tuple[str, ...]
    input: str = ""


@dataclass(frozen=True)
class Ranking:
    """The candidates of one query, ranked."""

    scores: tuple[float, ...]
    """Attention score of each candidate in the order given (mean attention a token; comparable within a query only)."""
    order: tuple[int, ...]
    """Indices of the candidates, best first; ties by index."""


@dataclass(frozen=True)
class Fused:
    """One answer written from the best K candidates."""

    text: str
    ranking: Ranking
    used: tuple[int, ...]
    """Indices of the K candidates that were fused, best first."""


def _query(instruction: str, candidates: Sequence[str], input: str) -> Query:
    """A query of a list of candidates; one text alone is not taken for a list of letters."""
    if isinstance(candidates, str):
        raise UserError("candidates must be a list of texts, not one text.")
    return Query(instruction, tuple(candidates), input)


def resolve_device(name: str | None) -> torch.device:
    """A torch device; None takes a GPU where there is one. Raises UserError for one that is not there."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: choose cpu, or cuda where there is a GPU.") from error
    return device


class Ensemble:
    """A trained URG with its tokenizer. Results do not depend on how queries are batched, nor on the order of
    candidates."""

    def __init__(self, model: URG, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        from data_pipeline.tokenization import Template

        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: give 1 or more.")
        self.model, self.tokenizer, self.batch_size = model.freeze(), tokenizer, batch_size
        self.template = Template.from_tokenizer(tokenizer)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | None = None, dtype: str = "float32", batch_size: int = 16
    ) -> Ensemble:
        """Load what `urg.train` exported. device: default cuda where there is one. dtype: float32 or bfloat16.

        batch_size: queries taken at once. Raises UserError for a folder without a URG model.
        """
        import torch

        from data_pipeline.tokenization import load_tokenizer
        from urg.model import SETTINGS_FILE, URG

        if not (Path(folder) / SETTINGS_FILE).is_file():
            raise UserError(f"{folder} is no URG model (no {SETTINGS_FILE}): name the model folder of a training run.")
        model = URG.from_pretrained(folder).to(device=resolve_device(device), dtype=getattr(torch, dtype))
        return cls(model, load_tokenizer(folder), batch_size)

    @property
    def k(self) -> int:
        """K, the candidates that are fused where nothing else is said."""
        return self.model.settings.k

    def rank(self, instruction: str, candidates: Sequence[str], input: str = "") -> Ranking:
        """Rank the candidates of one query."""
        return self.rank_batch([_query(instruction, candidates, input)])[0]

    def rank_and_fuse(self, instruction: str, candidates: Sequence[str], input: str = "", **options: Any) -> Fused:
        """Rank, and write one answer from the best K. options: k, num_beams, max_new_tokens."""
        return self.rank_and_fuse_batch([_query(instruction, candidates, input)], **options)[0]

    def fuse(self, instruction: str, candidates: Sequence[str], input: str = "", **options: Any) -> str:
        """The text of `rank_and_fuse`."""
        return self.rank_and_fuse(instruction, candidates, input, **options).text

    def rank_batch(self, queries: Sequence[Query]) -> list[Ranking]:
        """Rank the candidates of each query; same length and order as `queries`."""
        return [ranking for batch in self._batches(queries) for ranking in self._rank(batch)[0]]

    def rank_and_fuse_batch(
        self,
        queries: Sequence[Query],
        k: int | None = None,
        num_beams: int = 4,
        max_new_tokens: int | None = None,
    ) -> list[Fused]:
        """Rank and fuse each query; same length and order as `queries`.

        k: candidates fused, default the model's. num_beams: 1 is greedy. max_new_tokens: default the model's target
        length. Raises UserError for one that is below 1.
        """
        for name, value in {"k": k, "num_beams": num_beams, "max_new_tokens": max_new_tokens}.items():
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: give 1 or more.")
        options: dict[str, Any] = {"num_beams": num_beams}
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return [fused for batch in self._batches(queries) for fused in self._fuse(batch, k, options)]

    def _batches(self, queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
        for start in range(0, len(queries), self.batch_size):
            yield queries[start : start + self.batch_size]

    def _rank(self, queries: Sequence[Query]) -> tuple[list[Ranking], torch.Tensor, Layout, torch.Tensor]:
        """Rankings, and what fusing reuses: encoder states [S, D], their layout, scores [B, N]."""
        import torch

        from urg.batching import pack

        device = next(self.model.parameters()).device
        tokens_S, layout = pack([self._candidate_ids(query) for query in queries])
        layout = layout.to(device)
        with torch.inference_mode():
            hidden_SD = self.model.encode(tokens_S.to(device), layout)
            scores_BN = self.model.rank(hidden_SD, layout)
        rows = [row[: len(query.candidates)] for row, query in zip(scores_BN.tolist(), queries, strict=True)]
        rankings = [Ranking(tuple(row), tuple(sorted(range(len(row)), key=lambda i: -row[i]))) for row in rows]
        return rankings, hidden_SD, layout, scores_BN

    def _candidate_ids(self, query: Query) -> list[Any]:
        """The encoder's input for each candidate of a query."""
        from data_pipeline.encoding import encode_texts
        from data_pipeline.schema import encodable
        from data_pipeline.tokenization import question_text

        if not query.candidates:
            raise UserError("a query has no candidates: give at least one answer to rank.")
        if not all(isinstance(text, str) for text in query.candidates):
            raise UserError("a query's candidates must be a list of texts.")
        settings = self.model.settings
        text = encodable(question_text(query.instruction, query.input))
        (question, _), *_ = encode_texts([text], self.tokenizer, settings.question_tokens)
        answers = encode_texts(list(map(encodable, query.candidates)), self.tokenizer, settings.response_tokens)
        return [self.template.candidate_ids(question, answer) for answer, _ in answers]

    def _fuse(self, queries: Sequence[Query], k: int | None, options: dict[str, Any]) -> list[Fused]:
        rankings, hidden_SD, layout, scores_BN = self._rank(queries)
        ids_BT = self.model.fuse(hidden_SD, layout, scores_BN, k, **options)
        texts = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        kept = k or self.k
        return [Fused(text, r, r.order[:kept]) for text, r in zip(texts, rankings, strict=True)]


def main(config: EnsembleConfig) -> None:
    """Rank and fuse the candidates of each row of a JSON-lines file."""
    if not config.input.is_file():
        raise UserError(f"--input {config.input} is no file: give one of JSON lines, a row each.")
    if config.input.stat().st_size == 0:
        raise UserError(f"--input {config.input} is empty: give JSON lines, a row each.")
    if config.output.resolve() == config.input.resolve():
        raise UserError(f"--output {config.output} is the input itself: choose another file.")
    ensemble = Ensemble.from_pretrained(config.model, config.device, config.dtype, config.batch_size)
    staged = config.output.with_name(config.output.name + ".part")
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        with config.input.open("rb") as lines, staged.open("w", encoding="utf-8") as out:
            rows, bad = _process(ensemble, config, lines, out)
        staged.replace(config.output)
    except OSError as error:
        raise UserError(f"cannot write {config.output} ({error.strerror}): choose another --output.") from error
    print(f"{rows} rows: {rows - bad} answered, {bad} with an error, in {config.output}", file=sys.stderr)
    if bad == rows:
        raise UserError(
            f"no row of {config.input} could be answered, see the errors in {config.output}: is it JSON lines?"
        )


def _process(ensemble: Ensemble, config: EnsembleConfig, lines: Iterable[bytes], out: IO[str]) -> tuple[int, int]:
    """Answer line by line in batches; returns how many lines there were, and how many were bad."""
    numbered = iter(enumerate(lines, start=1))
    rows = bad = 0
    while batch := list(islice(numbered, config.batch_size)):
        parsed = [_parse(line, number) for number, line in batch]
        good = [query for query in parsed if isinstance(query[1], Query)]
        answers = iter(_answer(ensemble, config, [query for _, query in good]))  # type: ignore[misc]
        for row_id, query in parsed:
            result = next(answers) if isinstance(query, Query) else {"error": query}
            out.write(json.dumps({"id": row_id, **result}, ensure_ascii=False) + "\n")
            bad += "error" in result
        rows += len(batch)
    return rows, bad


def _parse(line: bytes, number: int) -> tuple[str, Query | str]:
    """(id, query), or (id, what is wrong with the row). A row without an id gets its line number."""
    from data_pipeline.cleaning import parse_line
    from data_pipeline.schema import encodable

    row_id = str(number)
    try:
        row = parse_line(line)
        row_id = encodable(str(number if row.get("id") is None else row["id"]))
        candidates = row.get("candidates")
        if not isinstance(candidates, list) or not candidates:
            raise RowError("no_candidates", "the row has no candidates: give a list with at least one answer.")
        texts = tuple(c.get("text") if isinstance(c, dict) else c for c in candidates)
        if not all(isinstance(text, str) for text in texts):
            raise RowError("bad_candidate", "a candidate is neither a text nor an object with a text.")
        instruction, input = row.get("instruction") or "", row.get("input") or ""
        if not isinstance(instruction, str) or not isinstance(input, str) or not (instruction or input):
            raise RowError("no_question", "the row has no question: give instruction or input as a text.")
        return row_id, Query(instruction, tuple(map(str, texts)), input)
    except RowError as error:
        return row_id, f"line {number}: {error}"


def _answer(ensemble: Ensemble, config: EnsembleConfig, queries: list[Query]) -> list[dict[str, Any]]:
    if not queries:
        return []
    if config.rank_only:
        return [{"scores": r.scores, "order": r.order} for r in ensemble.rank_batch(queries)]
    fused = ensemble.rank_and_fuse_batch(queries, config.k, config.num_beams, config.max_new_tokens)
    return [{"text": f.text, "scores": f.ranking.scores, "order": f.ranking.order, "used": f.used} for f in fused]


if __name__ == "__main__":
    run_command(main, EnsembleConfig)
