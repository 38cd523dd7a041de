"""The first pass over the input: check every line, find duplicates, and remember where each good row lies.

Workers check byte ranges (`survey_range`); the driver takes their answers in order (`Survey.add`), since only there all
ids come together. It keeps 16 bytes of each id, 8 of each prompt and four numbers of each place, so millions of rows
fit in memory. Of rows with one id the first of a split stays, and of several splits the one that is kept for the later
use (`leaks.by_use`), whatever the order of the files.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from data_pipeline.cleaning import Rules, clean_line, id_digest, listed, split_of
from data_pipeline.conversion import InputFile
from data_pipeline.errors import RowError, UserError
from data_pipeline.leaks import (
    SIGNATURE_BYTES,
    Prompts,
    Rows,
    by_use,
    find_leaks,
    normalized_prompt,
    prompt_digest,
    prompt_signature,
)
from data_pipeline.lines import ByteRange, read_lines, read_places

UNASSIGNED = "unassigned"
"""Where rejected rows are counted whose split would come from an id that could not be read."""
GENERATED_PREFIX = "generated/"
"""How the ids of the generated corpus begin."""
_RAW_CHARACTERS = 500
_DIGEST_BYTES = 16


def survey_range(part: Mapping[str, Any], rules: Rules, with_signatures: bool = False) -> dict[str, Any]:
    """Check the lines of one byte range (path, start, end, file: its index), on a worker.

    Returns file, lines (how many, blank ones too), rows (how many are not blank: counted before any is looked into, so
    that none can be lost unseen); of the good rows numbers (line within the range), offsets, sizes,
    digests (16 bytes each, joined, in hex), prompts (the digest of each), signatures (of prompts, joined, in hex; where
    asked for), generated (how many); rejected (line, reason, message, text); score_names.
    """
    numbers, offsets, sizes, digests, rejected = [], [], [], bytearray(), []
    prompts, signatures = [], bytearray()
    score_names: set[str] = set()
    lines = filled = generated = 0
    for line in read_lines(ByteRange(part["path"], part["start"], part["end"])):
        lines += 1
        if not line.raw.strip():
            continue
        filled += 1
        try:
            example = clean_line(line.raw, rules)
        except RowError as error:
            rejected.append((line.number, error.reason, str(error), _excerpt(line.raw)))
            continue
        numbers.append(line.number)
        offsets.append(line.offset)
        sizes.append(len(line.raw))
        digests += id_digest(example.id)
        prompt = normalized_prompt(example)
        prompts.append(prompt_digest(prompt))
        signatures += prompt_signature(prompt) if with_signatures else b""
        generated += example.id.startswith(GENERATED_PREFIX)
        score_names.update(name for candidate in example.candidates for name in candidate.scores)
    return {
        "file": part["file"],
        "lines": lines,
        "rows": filled,
        "numbers": numbers,
        "offsets": offsets,
        "sizes": sizes,
        "digests": digests.hex(),
        "prompts": prompts,
        "signatures": signatures.hex(),
        "generated": generated,
        "rejected": rejected,
        "score_names": sorted(score_names),
    }


def _excerpt(raw: bytes) -> str:
    """The beginning of a line that cannot be used, for a reader; bytes that are no UTF-8 are shown as \\xNN."""
    return raw[: 4 * _RAW_CHARACTERS].decode("utf-8", "backslashreplace")[:_RAW_CHARACTERS]


@dataclass
class Places:
    """Where rows lie, in their order: index of the file, line in it from 1, first byte, size; and their prompts."""

    files: array[int] = field(default_factory=lambda: array("l"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    prompts: Prompts = field(default_factory=Prompts)

    def __len__(self) -> int:
        return len(self.files)

    def shards(self, rows: int) -> Iterator[dict[str, list[int]]]:
        """The places in runs of `rows`, each a shard."""
        for start in range(0, len(self), rows):
            run = slice(start, start + rows)
            yield {
                "files": self.files[run].tolist(),
                "offsets": self.offsets[run].tolist(),
                "sizes": self.sizes[run].tolist(),
            }

    def without(self, rows: set[int]) -> Places:
        """The same without some rows."""
        kept = [row for row in range(len(self)) if row not in rows]

        def picked(column: array[int]) -> array[int]:
            return array(column.typecode, (column[row] for row in kept))

        files, lines, offsets, sizes = map(picked, (self.files, self.lines, self.offsets, self.sizes))
        return Places(files, lines, offsets, sizes, self.prompts.without(rows))


class Survey:
    """What the first pass found, filled by `add` in the order of the input.

    places: the rows to keep, by split. input, rejected: counts by split, of rejected rows also by reason.
    rows: all that are not blank, as the workers counted them.
    leaks: by split, by later split: the rows (of `places` before any was dropped) whose prompt stands there too.
    repeated_prompts: by split, how many rows have the prompt of an earlier row.
    """

    def __init__(self, files: Sequence[InputFile], fractions: Mapping[str, float], rules: Rules) -> None:
        """files: in order; where their split is None the id decides, by `fractions`."""
        self.files = list(files)
        self.fractions = fractions
        self.rules = rules
        names = dict.fromkeys(file.split for file in files if file.split) or dict.fromkeys(fractions)
        self.places = {name: Places() for name in names}
        self.rows = 0
        self.input: Counter[str] = Counter()
        self.rejected: dict[str, Counter[str]] = {}
        self.score_names: set[str] = set()
        self.generated = 0
        self.examples: dict[str, str] = {}
        self.leaks: dict[str, dict[str, Rows]] = {}
        self.repeated_prompts: dict[str, int] = {}
        self._ids: dict[str, dict[bytes, None]] = {name: {} for name in names}  # in the order of the rows
        self._lines = [0] * len(self.files)

    def add(self, answer: Mapping[str, Any], quarantine: IO[str]) -> None:
        """Take one answer of `survey_range`; rejected rows go to `quarantine`, one JSON object a line, in order."""
        file, first = answer["file"], self._lines[answer["file"]] + 1
        for number, *problem in self._problems(answer):
            self._reject(file, first + number, *problem, quarantine=quarantine)
        self._lines[file] += answer["lines"]
        self.rows += answer["rows"]
        self.score_names.update(answer["score_names"])
        self.generated += answer["generated"]

    def _problems(self, answer: Mapping[str, Any]) -> list[tuple[int, str, str, str, str]]:
        """Keep the good rows of an answer; return the others: line in the range, split, reason, message, raw text."""
        source = self.files[answer["file"]]
        problems = []
        for number, reason, message, raw in answer["rejected"]:
            problems.append((number, source.split or UNASSIGNED, reason, message, raw))
        digests, signatures = bytes.fromhex(answer["digests"]), bytes.fromhex(answer["signatures"])
        first = self._lines[answer["file"]] + 1
        rows = zip(answer["numbers"], answer["offsets"], answer["sizes"], answer["prompts"], strict=True)
        for row, (number, offset, size, prompt) in enumerate(rows):
            digest = digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES]
            name = source.split or split_of(digest, self.fractions)
            if digest in self._ids[name]:
                raw = _excerpt(read_places([str(source.path)], [0], [offset], [size])[0])
                problems.append((number, name, "duplicate_id", "a row with this id came before; it was kept", raw))
                continue
            self._ids[name][digest] = None
            self._keep(name, answer["file"], first + number, offset, size)
            prompts = self.places[name].prompts
            prompts.digests.append(prompt)
            prompts.signatures += signatures[row * SIGNATURE_BYTES : (row + 1) * SIGNATURE_BYTES]
        return sorted(problems)

    def _keep(self, split: str, file: int, line: int, offset: int, size: int) -> None:
        places = self.places[split]
        places.files.append(file)
        places.lines.append(line)
        places.offsets.append(offset)
        places.sizes.append(size)
        self.input[split] += 1

    def drop_repeated_ids(self, quarantine: IO[str]) -> None:
        """Reject the rows whose id stands in a split of a later use too, with a reason of their own."""
        later: dict[str, dict[int, str]] = {name: {} for name in self.places}
        for name, other in by_use(list(self.places)):
            shared = self._ids[name].keys() & self._ids[other].keys()
            if shared:
                later[name] |= {row: other for row, digest in enumerate(self._ids[name]) if digest in shared}
        for name, rows in later.items():
            message = "a row with this id stands in the {} split too; that one was kept"
            self._drop(name, rows, "duplicate_id_across_splits", message, quarantine)
        self._ids.clear()

    def find_leaks(self, threshold: float | None) -> None:
        """Fill `leaks`. threshold: see `leaks.find_leaks`; with one, `add` must have had signatures."""
        prompts = {name: places.prompts for name, places in self.places.items()}
        self.repeated_prompts = {name: each.repeated() for name, each in prompts.items()}
        self.leaks = find_leaks(prompts, threshold, self._prompt)

    def drop_leaks(self, quarantine: IO[str]) -> None:
        """Reject the rows that leak, with the reason `leak`."""
        for split, by_later in self.leaks.items():
            later = {int(row): name for name, rows in by_later.items() for row in rows}
            self._drop(split, later, "leak", "its prompt, or nearly the same, stands in the {} split too", quarantine)

    def _drop(self, split: str, later: Mapping[int, str], reason: str, message: str, quarantine: IO[str]) -> None:
        """Reject rows that were kept. later: by row, the split that `message` names."""
        places = self.places[split]
        self.places[split] = places.without(set(later)) if later else places
        for row, name in sorted(later.items()):
            self.input[split] -= 1  # it was counted when it was kept
            file, line, raw = places.files[row], places.lines[row], _excerpt(self._raw(places, row))
            self._reject(file, line, split, reason, message.format(name), raw, quarantine=quarantine)

    def _raw(self, places: Places, row: int) -> bytes:
        path = str(self.files[places.files[row]].path)
        return read_places([path], [0], [places.offsets[row]], [places.sizes[row]])[0]

    def _prompt(self, split: str, row: int) -> str:
        return normalized_prompt(clean_line(self._raw(self.places[split], row), self.rules))

    def _reject(
        self, file: int, line: int, split: str, reason: str, message: str, raw: str, *, quarantine: IO[str]
    ) -> None:
        path = self.files[file].name
        record = {"file": path, "line": line, "reason": reason, "message": message, "raw": raw}
        quarantine.write(json.dumps(record, ensure_ascii=True) + "\n")
        self.input[split] += 1
        self.rejected.setdefault(split, Counter())[reason] += 1
        self.examples.setdefault(reason, f"{path} line {line}: {message}")

    @property
    def kept(self) -> int:
        """Rows to keep, all splits together."""
        return sum(map(len, self.places.values()))

    def require_rows(self) -> None:
        """Raises `UserError`, with the counts by reason, where no row is left, or none for a split that files give."""
        for split, places in self.places.items():
            own_files = any(file.split == split for file in self.files)
            if not (places if own_files else self.kept):
                raise self._no_rows(f"split {split}" if own_files else "the input", [split] if own_files else None)

    def _no_rows(self, where: str, splits: Sequence[str] | None) -> UserError:
        """The error for input of which nothing is left. splits: those that count, None = all."""
        reasons: Counter[str] = Counter()
        for split, counts in self.rejected.items():
            reasons.update(counts if splits is None or split in splits else {})
        return no_valid_row(where, reasons, *(self.examples[reason] for reason, _ in reasons.most_common(1)))

    def counts(self, split: str) -> dict[str, Any]:
        """input, kept, and rejected by reason, of one split."""
        kept = len(self.places[split]) if split in self.places else 0
        return {
            "input": self.input[split],
            "kept": kept,
            "rejected": dict(sorted(self.rejected.get(split, {}).items())),
        }


def no_valid_row(where: str, rejected: Mapping[str, int], example: str = "") -> UserError:
    """The error for input of which nothing is left. rejected: rows by reason; example: of one, where and why."""
    if not rejected:
        return UserError(f"There is no valid row in {where}: it holds blank lines only; give one JSON object a line.")
    counts = listed(dict(sorted(rejected.items())))
    return UserError(f"There is no valid row in {where} (rejected: {counts}); for example {example}.")
