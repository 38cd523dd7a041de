"""What `prepare` is compared with, each run in a process of its own.

    map       `datasets.map(num_proc=N)` over the same file: parse, tokenize whole texts in Rust, write Arrow
    map_ours  the same with our own encoder, which does not encode a word again
    ceiling   the Rust tokenizer alone, in one process, on texts that are in memory
    idle      Ray, started and left alone: what it takes by itself

Each prints one number: seconds of work (map, map_ours), rows a second (ceiling), or nothing (idle).
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.encoding import Encoder

_CEILING_ROWS = 16_000
_BATCH = 256


def print_peer(what: str, path: str, tokenizer: str, processes: int) -> None:
    """Run one peer and print its number; for a process that does nothing else."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    peers: dict[str, Callable[[Path, str, int], object]] = {
        "map": _map,
        "map_ours": functools.partial(_map, by_words=True),
        "ceiling": _ceiling,
        "idle": _idle,
    }
    print(peers[what](Path(path), tokenizer, processes))


def _map(path: Path, tokenizer: str, processes: int, by_words: bool = False) -> float:
    """The obvious way: the datasets library loads the JSON lines, and its workers tokenize in batches."""
    import datasets

    datasets.disable_progress_bars()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        mapped = rows.map(
            _tokenize_batch,
            batched=True,
            batch_size=_BATCH,
            num_proc=processes,
            fn_kwargs={"tokenizer": tokenizer, "by_words": by_words},
            remove_columns=["candidates"],
        )
        assert len(mapped) == len(rows)
        return time.perf_counter() - started


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: str, by_words: bool) -> Encoder:
    from data_pipeline.tokenization import load_tokenizer

    return Encoder.of(load_tokenizer(tokenizer), by_words)


def _tokenize_batch(batch: dict[str, list[Any]], tokenizer: str, by_words: bool) -> dict[str, list[Any]]:
    """Question, responses and target of each row as token ids; the scores and models beside them."""
    own = _encoder(tokenizer, by_words)

    def encode(texts: list[str]) -> list[Any]:
        tokens = own.encode(texts, 128)
        return [tokens[text] for text in range(len(tokens))]

    ids = iter(encode([candidate["text"] for row in batch["candidates"] for candidate in row]))
    return {
        "question_ids": encode(batch["instruction"]),
        "target_ids": encode(batch["output"]),
        "response_ids": [[next(ids) for _ in row] for row in batch["candidates"]],
        "models": [[candidate["model"] for candidate in row] for row in batch["candidates"]],
        "texts": [[candidate["text"] for candidate in row] for row in batch["candidates"]],
        "scores": [[candidate["scores"] for candidate in row] for row in batch["candidates"]],
    }


def _ceiling(path: Path, tokenizer: str, processes: int) -> float:
    """Only the Rust tokenizer, one thread, nothing read or written while it is timed."""
    from data_pipeline.tokenization import load_tokenizer

    backend: Any = load_tokenizer(tokenizer).backend_tokenizer
    backend.encode_special_tokens = True
    with path.open(encoding="utf-8") as file:
        rows = [_texts(json.loads(line)) for line in itertools.islice(file, _CEILING_ROWS)]
    batches = [[text for row in rows[i : i + _BATCH] for text in row] for i in range(0, len(rows), _BATCH)]
    started = time.perf_counter()
    for batch in batches:
        [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]
    return len(rows) / (time.perf_counter() - started)


def _texts(row: dict[str, Any]) -> list[str]:
    return [row["instruction"], row["output"], *(candidate["text"] for candidate in row["candidates"])]


def _idle(path: Path, tokenizer: str, processes: int) -> str:
    """Ray with its workers started, for a while."""
    import ray

    from data_pipeline.ray_session import ray_session

    @ray.remote
    def nothing() -> None:
        time.sleep(1)

    with ray_session():
        ray.get([nothing.remote() for _ in range(processes)])
        time.sleep(3)
    return ""
