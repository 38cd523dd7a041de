"""What `prepare` is compared with, each run in a process of its own.

    map      `datasets.map(num_proc=N)` over the same file: parse, tokenize, write Arrow
    ceiling  the tokenizer alone, in one process, on texts that are in memory
    idle     Ray, started and left alone: what it takes by itself

Each prints one number: seconds of work (map, ceiling), or nothing (idle).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any


def print_peer(what: str, path: str, tokenizer: str, processes: int) -> None:
    """Run one peer and print its number; for a process that does nothing else."""
    print({"map": _map, "ceiling": _ceiling, "idle": _idle}[what](Path(path), tokenizer, processes))


def _map(path: Path, tokenizer: str, processes: int) -> float:
    """The obvious way: the datasets library loads the JSON lines, and its workers tokenize in batches."""
    import datasets

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.disable_progress_bars()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        mapped = rows.map(
            _tokenize_batch,
            batched=True,
            batch_size=256,
            num_proc=processes,
            fn_kwargs={"tokenizer": tokenizer},
            remove_columns=["candidates"],
        )
        assert len(mapped) == len(rows)
        return time.perf_counter() - started


def _tokenize_batch(batch: dict[str, list[Any]], tokenizer: str) -> dict[str, list[Any]]:
    """Question, responses and target of each row as token ids; the scores and models beside them."""
    from data_pipeline.plan import _worker_tokenizer
    from data_pipeline.tokenization import encode_texts

    own = _worker_tokenizer(tokenizer)
    texts = [candidate["text"] for row in batch["candidates"] for candidate in row]
    ids = iter([encoded for encoded, _ in encode_texts(texts, own, 128)])
    return {
        "question_ids": [encoded for encoded, _ in encode_texts(batch["instruction"], own, 128)],
        "target_ids": [encoded for encoded, _ in encode_texts(batch["output"], own, 128)],
        "response_ids": [[next(ids) for _ in row] for row in batch["candidates"]],
        "models": [[candidate["model"] for candidate in row] for row in batch["candidates"]],
        "texts": [[candidate["text"] for candidate in row] for row in batch["candidates"]],
        "scores": [[candidate["scores"] for candidate in row] for row in batch["candidates"]],
    }


def _ceiling(path: Path, tokenizer: str, processes: int) -> float:
    """Only the tokenizer, one thread, nothing read or written while it is timed."""
    from data_pipeline.plan import _worker_tokenizer
    from data_pipeline.tokenization import encode_texts

    own = _worker_tokenizer(tokenizer)
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    batches = [
        [text for row in rows[i : i + 256] for text in (row["instruction"], row["output"], *_texts(row))]
        for i in range(0, len(rows), 256)
    ]
    started = time.perf_counter()
    for batch in batches:
        encode_texts(batch, own, 128)
    return time.perf_counter() - started


def _texts(row: dict[str, Any]) -> list[str]:
    return [candidate["text"] for candidate in row["candidates"]]


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
