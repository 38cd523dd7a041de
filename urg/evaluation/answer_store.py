"""Answers that outlive a killed run: one Parquet file a system, written whole or not at all, with a key.

The key stands for the rows, the system, the options that it depends on (`urg.systems.NEEDS`), the content of the
folders and files that they name and the version of what reads them; under another key a file is not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from urg.evaluation.config import EvaluateConfig
from urg.evaluation.results import write_parquet
from urg.systems import NEEDS
from urg.systems.protocol import KINDS, Answer, Kind

if TYPE_CHECKING:
    from data_pipeline.shards import TokenizedExample

FOLDER = "answers"
FORMAT = 3
VERSIONS = {"reward_model": 2, "gen_fuser": 2}
"""Of how the model of a folder is used; raised, the answers that it had a part in are made anew, and only they."""
# Settings that no answer depends on. Whatever is not named here (an option of a new system, say) is part of the key.
NOT_IN_KEY = frozenset({
    "shards", "output", "systems", "list", "experiment", "split", "label", "rows", "batch_size", "workers", "fresh",
    "folds", "fold", "bertscore_model", "bartscore_model", "bartscore_weights", "bleurt_model", "bleurt_tokens",
    "metric_batch_tokens", "cases", "track", "tracking", "judge", "statistics", "human",
})  # fmt: skip


@dataclass(frozen=True)
class Answered:
    """A system (`urg.systems.protocol.System`) whose answers are there already."""

    name: str
    kind: Kind
    answers: list[Answer | None]

    def answer(self, rows: Sequence[TokenizedExample]) -> list[Answer | None]:
        """The answers to the rows that they were made for."""
        return self.answers


class AnswerStore:
    """The answers below an output folder, for one set of rows and one configuration."""

    def __init__(self, output: Path, config: EvaluateConfig, rows: Sequence[TokenizedExample], label: str) -> None:
        self._output, self._folder = output, output / FOLDER
        self._ids = [row.id for row in rows]
        self._fresh = config.fresh
        self._options = {key: value for key, value in asdict(config).items() if key not in NOT_IN_KEY}
        self._rows, self._label = _rows_digest(rows), label

    def of_part(self, config: EvaluateConfig, rows: Sequence[TokenizedExample]) -> AnswerStore:
        """That of a part of the rows under cross-validation, in a folder of its own. config: the part's."""
        return AnswerStore(self._output / f"fold-{config.fold}", config, rows, self._label)

    def load(self, name: str) -> Answered | None:
        """What an earlier run left of a system; None where there is nothing, or nothing that can be read."""
        import pyarrow
        import pyarrow.parquet

        if self._fresh or not self._path(name).is_file():
            return None
        try:
            table = pyarrow.parquet.read_table(self._path(name))
        except (OSError, pyarrow.ArrowException):
            return None  # damaged from outside: answered anew
        found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if found.get("key") != self.key(name) or found.get("kind") not in KINDS or table["id"].to_pylist() != self._ids:
            return None
        return Answered(name, found["kind"], [answer_of(line) for line in table.to_pylist()])  # type: ignore[arg-type]

    def save(self, system: Answered) -> None:
        """Put a system's answers in place, all at once."""
        import pyarrow as pa

        fields = [
            ("id", pa.string()), ("text", pa.string()), ("picked", pa.int32()), ("scores", pa.list_(pa.float64())),
            ("used", pa.list_(pa.int32())),
        ]  # fmt: skip
        lines = [{"id": row_id, **fields_of(answer)} for row_id, answer in zip(self._ids, system.answers, strict=True)]
        schema = pa.schema(fields, metadata={"key": self.key(system.name), "kind": system.kind})
        self._folder.mkdir(parents=True, exist_ok=True)
        write_parquet(self._path(system.name), pa.Table.from_pylist(lines, schema=schema))

    def key(self, name: str) -> str:
        """What the answers of a system depend on, as 64 hexadecimal digits."""
        label = self._label if name.startswith("oracle") else None  # only an oracle sees it
        system = name.rsplit(":", 2)[1] if name.startswith("noise:") else name  # noise:LABEL:SYSTEM:VARIANT
        return self._digest(_needed(self._options, system), {"system": name, "label": label})

    def key_of_all(self) -> str:
        """What all answers together depend on, whichever systems are asked: 64 hexadecimal digits."""
        return self._digest(self._options, {"label": self._label})

    def _digest(self, options: dict[str, Any], facts: dict[str, str | None]) -> str:
        parts: dict[str, Any] = {"format": FORMAT, "rows": self._rows, "options": _by_content(options)} | facts
        versions = {name: version for name, version in VERSIONS.items() if name in options["folders"]}
        if versions:  # else the key is as it was before there were any
            parts["versions"] = versions
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.parquet"


def fields_of(answer: Answer | None) -> dict[str, Any]:
    """An answer as plain values; text None = the system did not answer the row."""
    if answer is None:
        return {"text": None, "picked": None, "scores": None, "used": []}
    scores = None if answer.scores is None else [float(score) for score in answer.scores]
    return {"text": answer.text, "picked": answer.picked, "scores": scores, "used": [int(i) for i in answer.used]}


def answer_of(line: dict[str, Any]) -> Answer | None:
    """The answer that `fields_of` made `line` from."""
    if line["text"] is None:
        return None
    scores = None if line["scores"] is None else np.array(line["scores"], dtype=np.float64)
    return Answer(line["text"], line["picked"], scores, tuple(line["used"]))


def _rows_digest(rows: Sequence[TokenizedExample]) -> str:
    """SHA-256 of all that a system may read of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        texts = [row.id, row.instruction, row.input, row.output, row.models, row.texts, row.cmp_results]
        digest.update(json.dumps(texts).encode())
        for name in sorted(row.scores):
            digest.update(name.encode() + np.ascontiguousarray(row.scores[name], dtype=np.float64).tobytes())
    return digest.hexdigest()


def _needed(options: dict[str, Any], system: str) -> dict[str, Any]:
    """The options that a system's answers depend on; all of them for one that does not say."""
    needs = NEEDS.get(system)
    if needs is None:
        return options
    own = {key: value for key, value in options.items() if key in (*needs.settings, "device", "dtype")}
    return own | {"folders": {name: folder for name, folder in options["folders"].items() if name in needs.folders}}


def _by_content(value: Any) -> Any:
    """Options with each folder or file that they name, nested ones included, as the SHA-256 of what it holds."""
    if isinstance(value, dict):
        return {key: _by_content(inner) for key, inner in value.items()}
    if not isinstance(value, str) or not value or not Path(value).expanduser().exists():
        return value
    return content_digest(Path(value).expanduser())


def content_digest(folder: Path) -> str:
    """SHA-256 of the files in a folder by name and content, or of one file. A file is read again when it changes."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    lines = []
    for path in files:
        found = path.stat()
        lines.append(f"{path.relative_to(folder)}\n{_file_digest(path, found.st_size, found.st_mtime_ns)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    from data_pipeline.shard_writing import file_sha256

    return file_sha256(path)
