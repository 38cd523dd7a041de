"""Use a trained URG: candidates in, ranking and fused text out.

    from urg import Ensemble
    urg = Ensemble.from_pretrained("runs/sample/model")
    fused = urg.rank_and_fuse("Name a prime.", ["7", "9 is a prime.", "Two is one."])
    fused.text, fused.ranking.order, fused.used

From the shell, JSON lines in and out, one line out for each line in, in order; killed, the same command goes on:
    python -m urg.ensemble --model runs/sample/model --input rows.jsonl --output out.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.cli import run_command
from data_pipeline.errors import UserError
from urg.checks import is_gap
from urg.config import EnsembleConfig
from urg.read_ahead import read_ahead

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from urg.layout import Layout
    from urg.model import URG

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
TOKENS_AT_ONCE = 65536
"""Tokens of queries that are taken at once at most, padding counted, but for a query that has more by itself."""
CHARACTERS_PER_TOKEN = 4
"""About: queries are sorted by length before they are tokenized."""

Answer = TypeVar("Answer")
Encoded = tuple[list[Any], int, int]
"""Of a query: the encoder's input for each candidate, how many tokens of each are the question's, and how many of the
texts were cut."""


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
    cut: int = 0
    """Texts of the query, question and candidates, that were cut to the model's length."""


@dataclass(frozen=True)
class Fused:
    """One answer written from the best candidates."""

    text: str
    ranking: Ranking
    used: tuple[int, ...]
    """Indices of the candidates that were fused, best first: K of them, or fewer where there is a `k_gap`."""


def _query(instruction: str, candidates: Sequence[str], input: str) -> Query:
    """A query of a list of candidates; one text alone is not taken for a list of letters."""
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        given = "one text" if isinstance(candidates, str) else repr(candidates)
        raise UserError(f"candidates must be a list of texts, not {given}.")
    return Query(instruction, tuple(candidates), input)


def _require_whole_numbers(**options: Any) -> None:
    """Raise UserError, naming the option, for one that is no whole number from 1; None passes."""
    for name, value in options.items():
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise UserError(f"{name}={value!r}: give 1 or more.")


def _require_gap(k_gap: Any) -> None:
    """Raise UserError for a gap that is no number from 0."""
    if not (k_gap is None or (isinstance(k_gap, Real) and is_gap(float(k_gap)))):
        raise UserError(f"k_gap={k_gap!r}: give 0 or more.")


def _require_texts(query: Query) -> None:
    """Raise UserError, naming the argument, where a query is not made of texts."""
    for name in ("instruction", "input"):
        if not isinstance(getattr(query, name), str):
            raise UserError(f"{name} must be a text, not {getattr(query, name)!r}.")
    if not query.candidates:
        raise UserError("a query has no candidates: give at least one answer to rank.")
    if not all(isinstance(text, str) for text in query.candidates):
        raise UserError("a query's candidates must be a list of texts.")


def resolve_device(name: str | None) -> torch.device:
    """A torch device; None takes a GPU where there is one. Raises UserError for one that is not there."""
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: choose cpu, or cuda where there is a GPU.") from error
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name that training uses too. Raises UserError for another."""
    import torch

    if name not in DTYPES:
        raise UserError(f"dtype={name!r}: choose {' or '.join(DTYPES)}.")
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


class Ensemble:
    """A trained URG with its tokenizer. Results do not depend on how queries are batched, nor on the order of
    candidates, but for rounding: in fp32 scores differ by less than 1e-6, so that candidates as near as that may change
    places.

    Memory: of a query the encoder's states of all its candidates are held, N·L·D numbers (3 kB a token of T5-base in
    fp32), for ranking and fusing read them; while its text is written also keys and values of the K that are fused, of
    every layer (not on a CPU: of every beam, too). All else is bounded, for any number of candidates and queries.
    """

    def __init__(self, model: URG, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        """model: is frozen by this, and cannot be saved afterwards (`URG.freeze`)."""
        from data_pipeline.tokenization import Template

        _require_whole_numbers(batch_size=batch_size)
        self.model, self.tokenizer, self.batch_size = model.freeze(), tokenizer, batch_size
        self.template = Template.from_tokenizer(tokenizer)
        self._tokenizing = Lock()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = 16,
        verify: bool = True,
    ) -> Ensemble:
        """Load what `urg.train` exported. device: default cuda where there is one. dtype: fp32 or bf16.

        batch_size: queries taken at once. verify: compare the weights with their checksums, about a second a GB.
        Raises UserError for a folder without a URG model, or with a damaged one.
        """
        from urg.model_folder import require_unaltered, require_urg

        _require_whole_numbers(batch_size=batch_size)
        path = Path(folder).expanduser()
        require_urg(path)
        place, precision = resolve_device(device), resolve_dtype(dtype)
        if verify:
            require_unaltered(path)

        from data_pipeline.tokenization import load_tokenizer
        from urg.model import URG

        return cls(URG.from_pretrained(path).to(place, precision), load_tokenizer(path), batch_size)

    @property
    def k(self) -> int:
        """K, the candidates that are fused where nothing else is said."""
        return self.model.settings.k

    @property
    def writes(self) -> bool:
        """Whether the model was trained to write; one that was not can only rank."""
        return self.model.settings.writes

    def rank(self, instruction: str, candidates: Sequence[str], input: str = "") -> Ranking:
        """Rank the candidates of one query."""
        return self.rank_batch([_query(instruction, candidates, input)])[0]

    def rank_and_fuse(self, instruction: str, candidates: Sequence[str], input: str = "", **options: Any) -> Fused:
        """Rank, and write one answer from the best K. options: k, k_gap, num_beams, max_new_tokens."""
        return self.rank_and_fuse_batch([_query(instruction, candidates, input)], **options)[0]

    def fuse(self, instruction: str, candidates: Sequence[str], input: str = "", **options: Any) -> str:
        """The text of `rank_and_fuse`."""
        return self.rank_and_fuse(instruction, candidates, input, **options).text

    def rank_batch(self, queries: Sequence[Query]) -> list[Ranking]:
        """Rank the candidates of each query; same length and order as `queries`."""
        return self._answers(queries, lambda encoded: self._rank(encoded)[0])

    def rank_and_fuse_batch(
        self,
        queries: Sequence[Query],
        k: int | None = None,
        num_beams: int = 4,
        max_new_tokens: int | None = None,
        k_gap: float | None = None,
    ) -> list[Fused]:
        """Rank and fuse each query; same length and order as `queries`.

        k: candidates fused, default the model's. num_beams: 1 is greedy. max_new_tokens: default the model's target
        length. k_gap: of the k only those whose score is at least exp(-k_gap) of the top one's; default the model's
        where k is, else all. Raises UserError for a whole number below 1, and for a gap below 0.
        """
        _require_whole_numbers(k=k, num_beams=num_beams, max_new_tokens=max_new_tokens)
        _require_gap(k_gap)
        if not self.writes:
            raise UserError("the model was trained to rank alone (loss.generation false) and cannot write: only rank.")
        options: dict[str, Any] = {"num_beams": num_beams}
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return self._answers(queries, lambda encoded: self._fuse(encoded, k, k_gap, options))

    def _answers(self, queries: Sequence[Query], answer: Callable[[list[Encoded]], list[Answer]]) -> list[Answer]:
        """What `answer` makes of each query: of those of like length together, and while it does, another thread
        tokenizes the next."""
        for query in queries:
            _require_texts(query)
        answers: dict[int, Answer] = {}
        with closing(read_ahead(self._groups(queries))) as groups:
            for rows, encoded in groups:
                answers |= zip(rows, answer(encoded), strict=True)
        return [answers[row] for row in range(len(queries))]

    def _groups(self, queries: Sequence[Query]) -> Iterator[tuple[list[int], list[Encoded]]]:
        """The queries by their index, tokenized, the longest first: at most `batch_size` of them and TOKENS_AT_ONCE
        tokens in a group."""
        from urg.layout import plan_chunks

        order = sorted(range(len(queries)), key=lambda row: -self._length(queries[row]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            encoded = [self._candidate_ids(queries[row]) for row in rows]
            lengths = [sum(map(len, ids)) for ids, *_ in encoded]
            for _, members in plan_chunks(lengths, TOKENS_AT_ONCE):
                yield [rows[i] for i in members], [encoded[i] for i in members]

    def _length(self, query: Query) -> int:
        """About how many tokens are read of a query."""
        own = self.model.settings
        question = min((len(query.instruction) + len(query.input)) // CHARACTERS_PER_TOKEN, own.question_tokens)
        responses = (min(len(text) // CHARACTERS_PER_TOKEN, own.response_tokens) for text in query.candidates)
        return question * len(query.candidates) + sum(responses)

    def _rank(self, encoded: list[Encoded]) -> tuple[list[Ranking], torch.Tensor, Layout, torch.Tensor]:
        """Rankings, and what fusing reuses: encoder states [S, D], their layout, scores [B, N]."""
        import torch

        from urg.batching import pack
        from urg.devices import moved

        device = next(self.model.parameters()).device
        tokens_S, layout = pack([ids for ids, *_ in encoded], [question for _, question, _ in encoded])
        layout = moved(layout, device)
        with torch.inference_mode():
            hidden_SD = self.model.encode(moved(tokens_S, device), layout)
            scores_BN = self.model.rank(hidden_SD, layout)
        rows = [row[: len(ids)] for row, (ids, *_) in zip(scores_BN.tolist(), encoded, strict=True)]
        rankings = [
            Ranking(tuple(row), tuple(sorted(range(len(row)), key=lambda i: -row[i])), cut)
            for row, (*_, cut) in zip(rows, encoded, strict=True)
        ]
        return rankings, hidden_SD, layout, scores_BN

    def _candidate_ids(self, query: Query) -> Encoded:
        """A query, tokenized."""
        from data_pipeline.encoding import encode_texts
        from data_pipeline.schema import encodable
        from data_pipeline.tokenization import question_text

        settings = self.model.settings
        text = encodable(question_text(query.instruction, query.input))
        with self._tokenizing:
            (question, cut), *_ = encode_texts([text], self.tokenizer, settings.question_tokens)
            answers = encode_texts(list(map(encodable, query.candidates)), self.tokenizer, settings.response_tokens)
        ids = [self.template.candidate_ids(question, answer) for answer, _ in answers]
        return ids, self.template.question_length(len(question)), cut + sum(cut for _, cut in answers)

    def _fuse(self, encoded: list[Encoded], k: int | None, k_gap: float | None, options: dict[str, Any]) -> list[Fused]:
        from data_pipeline.tokenization import decode_texts

        rankings, hidden_SD, layout, scores_BN = self._rank(encoded)
        selected_BN, _ = self.model.choose(scores_BN, layout, k, k_gap)
        ids_BT = self.model.fuse(hidden_SD, layout, selected_BN, **options)
        with self._tokenizing:  # older tokenizers cannot encode in another thread meanwhile
            texts = decode_texts(ids_BT, self.tokenizer)
        counts = selected_BN.sum(1).tolist()
        return [Fused(text, r, r.order[:count]) for text, r, count in zip(texts, rankings, counts, strict=True)]


def main(config: EnsembleConfig) -> None:
    """Rank and fuse the candidates of each row of a JSON-lines file; killed, the same command goes on where it
    stopped."""
    from urg.ensemble_rows import answer_rows, lines_at_once, summarize
    from urg.model_folder import require_urg
    from urg.partial_output import partial_output, writing_to

    _require_input(config)
    require_urg(Path(config.model).expanduser())
    with partial_output(config.output, _source(config), lines_at_once(config)) as (out, kept):
        ensemble = Ensemble.from_pretrained(
            config.model, config.device, config.dtype, config.batch_size, verify=config.verify
        )
        with writing_to(config.output), config.input.open("rb") as lines:
            answer_rows(ensemble, config, lines, out, skip=kept)
    answered, said = summarize(config.output)
    print(said, file=sys.stderr)
    if not answered:
        raise UserError(
            f"no row of {config.input} could be answered, see the errors in {config.output}: is it JSON lines?"
        )


def _require_input(config: EnsembleConfig) -> None:
    """Raise UserError for an input that is not there, or empty, or the output."""
    if not config.input.is_file():
        raise UserError(f"--input {config.input} is no file: give one of JSON lines, a row each.")
    if config.input.stat().st_size == 0:
        raise UserError(f"--input {config.input} is empty: give JSON lines, a row each.")
    if config.output.resolve() == config.input.resolve():
        raise UserError(f"--output {config.output} is the input itself: choose another file.")


def _source(config: EnsembleConfig) -> dict[str, Any]:
    """What the output is made of: lines that were made of the same are kept when a killed command is given again."""
    from urg import __version__
    from urg.partial_output import stamp

    options = {key: value for key, value in asdict(config).items() if key not in ("model", "input", "output", "verify")}
    model = stamp(Path(config.model).expanduser())
    return {"version": __version__, "input": stamp(config.input), "model": model, "options": options}


if __name__ == "__main__":
    run_command(main, EnsembleConfig)
