"""Row functions: a line of a file becomes a clean `Example`, or is rejected with a reason. Nothing here does I/O.

What is repaired, by `Rules`: odd characters (`characters.py`); model names by an alias table (in `cmp_results` too);
log-scale scores of exactly 0.0, which in MixInstruct mean that nobody computed them, and which as a log-probability
would be the best score there is. A score that is no finite number is missing too. All of it is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.characters import (
    KEEP,
    REJECT,
    clean_example,
    may_be_odd,
    may_hold_controls,
    require_plain,
    row_faults,
)
from data_pipeline.errors import RowError
from data_pipeline.schema import Candidate, Example, parse_row, unusable_scores

# MixInstruct's validation split names one model differently from its training and test split.
MIXINSTRUCT_ALIASES = {"oasst-ft-4-pythia-12b-epoch-3.5": "oasst-sft-4-pythia-12b-epoch-3.5"}
LOG_SCALE_SCORES = ("bartscore", "logprobs")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Rules:
    """What cleaning repairs and rejects."""

    aliases: Mapping[str, str] = field(default_factory=lambda: dict(MIXINSTRUCT_ALIASES))
    """Model names to replace: name in the file → name to use."""
    log_scale_scores: Sequence[str] = LOG_SCALE_SCORES
    """Scores on a log scale, of which an exact 0.0 means missing."""
    models: Sequence[str] = ()
    """The model names to accept, after aliases; empty = any."""
    characters: str = KEEP
    """What becomes of control characters and the like: keep, clean or reject, as `characters.py` says."""


@dataclass
class Repairs:
    """What cleaning changed, counted over rows."""

    zero_scores: Counter[str] = field(default_factory=Counter)
    """By score: candidates whose exact 0.0 was taken as missing."""
    aliased: Counter[str] = field(default_factory=Counter)
    """By name in the file: candidates that were renamed."""
    characters: Counter[str] = field(default_factory=Counter)
    """By kind of odd character: texts that hold one, whether it was kept or cleaned."""
    unusable_scores: dict[str, Counter[str]] = field(default_factory=dict)
    """By score, by what stands in its place (text, NaN, …): candidates whose score was taken as missing."""
    repeated_models: Counter[str] = field(default_factory=Counter)
    """By model, after aliases: candidates of a row that has an earlier one of the same model; they are kept."""

    def add_unusable(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add to `unusable_scores`."""
        for name, found in counts.items():
            self.unusable_scores.setdefault(name, Counter()).update(found)


def parse_line(raw: bytes) -> dict[str, Any]:
    """The JSON object on one line. Raises `RowError`: bad_encoding, bad_json, not_an_object."""
    try:
        text = raw.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("bad_encoding", f"the line is not UTF-8 (byte {error.start}); convert the file to it") from None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        if "\0" in text:  # which no JSON has
            raise RowError(
                "bad_encoding", "the line holds NUL bytes, as UTF-16 does; convert the file to UTF-8"
            ) from None
        problem = f"{error.msg.removesuffix(' at')} at character {error.pos}"
        raise RowError("bad_json", f"the line is not JSON ({problem})") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets nested without end
        raise RowError("bad_json", f"the line's JSON cannot be held ({type(error).__name__})") from None
    if not isinstance(row, dict):
        raise RowError("not_an_object", "the line is JSON, but not an object")
    return row


def clean_line(raw: bytes, rules: Rules, repairs: Repairs | None = None) -> Example:
    """The clean `Example` on one line, repairs counted into `repairs`. Raises `RowError` where there is none."""
    row = parse_line(raw)
    example = parse_row(row)
    if (repairs is not None or rules.characters != KEEP) and may_be_odd(raw):
        example = _clean_characters(example, row, may_hold_controls(raw), rules, repairs)
    if repairs is not None:
        _count_unusable(row["candidates"], example.candidates, repairs)
    return clean(example, rules, Repairs() if repairs is None else repairs)


def _count_unusable(items: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate], repairs: Repairs) -> None:
    """Count the scores of a row's candidates as JSON has them, `items`, that parsing has dropped."""
    for item, candidate in zip(items, candidates, strict=True):
        scores = item.get("scores") or {}
        if len(scores) > len(candidate.scores):
            for name, what in unusable_scores(scores):
                repairs.add_unusable({name: {what: 1}})


def _clean_characters(
    example: Example, row: Mapping[str, Any], controls: bool, rules: Rules, repairs: Repairs | None
) -> Example:
    """`example`, which was made of `row`, under the rule for characters. controls: whether it may hold such."""
    if rules.characters == REJECT:
        require_plain(row)
    if repairs is not None:
        repairs.characters.update(fault for _, fault in row_faults(row, controls))
    return example if rules.characters == KEEP else clean_example(example)


def clean(example: Example, rules: Rules, repairs: Repairs) -> Example:
    """`example` under `rules`, repairs counted into `repairs`. Raises `RowError` unknown_model."""
    candidates = tuple(_clean_candidate(candidate, rules, repairs) for candidate in example.candidates)
    if rules.models:
        for candidate in candidates:
            if candidate.model not in rules.models:
                raise RowError("unknown_model", f"model {candidate.model} is not among the configured models")
    models = [candidate.model for candidate in candidates]
    if len(set(models)) < len(models):
        repairs.repeated_models.update(Counter(models) - Counter(set(models)))
    return replace(example, candidates=candidates, cmp_results=_clean_comparisons(example.cmp_results, rules))


def _clean_candidate(candidate: Candidate, rules: Rules, repairs: Repairs) -> Candidate:
    """One candidate, its model renamed and its missing scores dropped."""
    zeros = [name for name in rules.log_scale_scores if candidate.scores.get(name) == 0.0]
    if zeros:
        repairs.zero_scores.update(zeros)
    model = rules.aliases.get(candidate.model, candidate.model)
    if model != candidate.model:
        repairs.aliased[candidate.model] += 1
    elif not zeros:
        return candidate
    scores = {name: value for name, value in candidate.scores.items() if name not in zeros}
    return replace(candidate, model=model, scores=scores)


def _clean_comparisons(comparisons: dict[str, str] | None, rules: Rules) -> dict[str, str] | None:
    """Verdicts by pair, each pair's names under the aliases."""
    if comparisons is None:
        return None
    return {
        ",".join(rules.aliases.get(name, name) for name in pair.split(",")): verdict
        for pair, verdict in comparisons.items()
    }


def remarks_on_candidates(
    unusable: Mapping[str, Mapping[str, int]], repeated: Mapping[str, int], most: int = 5
) -> list[str]:
    """What a reader should know of `Repairs.unusable_scores` and `.repeated_models`; nothing where there is none.

    most: how many models are named.
    """
    scores = [
        f"{name} {sum(found.values()):,} ({listed(found) if len(found) > 1 else next(iter(found))})"
        for name, found in sorted(unusable.items())
    ]
    lines = [f"scores that are no numbers, taken as missing: {', '.join(scores)}"] if scores else []
    if repeated:
        named = listed(dict(Counter(repeated).most_common(most))) + (", …" if len(repeated) > most else "")
        lines.append(f"candidates whose model has answered before in the same row: {named} (kept)")
    return lines


def listed(counts: Mapping[str, int]) -> str:
    """Counts for a sentence: name and count, name and count."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def id_digest(row_id: str) -> bytes:
    """16 bytes that stand for an id: enough to tell billions apart, and small enough to keep all of them in memory."""
    return hashlib.blake2b(row_id.encode("utf-8"), digest_size=16).digest()


def split_of(digest: bytes, fractions: Mapping[str, float]) -> str:
    """The split of a row, by its `id_digest` alone: the same id always lands in the same split.

    fractions: share of each split, in 0..1; they add up to 1.
    """
    place = int.from_bytes(digest[:8], "big") / 2**64
    for name, fraction in fractions.items():
        if place < fraction:
            return name
        place -= fraction
    return next(reversed(dict(fractions)))  # rounding may leave a sliver above the sum
