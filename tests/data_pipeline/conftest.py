"""Rows, files and a tokenizer for the tests of the data pipeline, and one Ray for those that need it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = tuple(
    "the cat sat on a mat and 12 dogs ran 3 miles to see 45 birds near old stone bridge".split()  # noqa: SIM905
)
Row = dict[str, Any]


def _sentence(random: Random, words: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    """make_rows(count, prefix="row", candidates=3): valid rows, the same each time."""

    def make(count: int, prefix: str = "row", candidates: int = 3) -> list[Row]:
        random = Random(f"{prefix}{count}{candidates}")
        return [
            {
                "id": f"{prefix}/{i}",
                "instruction": _sentence(random, 5),
                "input": _sentence(random, 4) if i % 2 else "",
                "output": _sentence(random, 8),
                "candidates": [
                    {
                        "model": f"model-{j}",
                        "decoding_method": "greedy",
                        "text": _sentence(random, random.randrange(1, 20)),
                        "scores": {"rougeL": random.random(), "bartscore": -random.random()},
                    }
                    for j in range(candidates)
                ],
                "cmp_results": "null",
            }
            for i in range(count)
        ]

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """write_rows(name, rows): a JSON-lines file in tmp_path; a row that is bytes is written as it is."""

    def write(name: str, rows: Sequence[Row | bytes]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer, trained on some words."""
    from data_pipeline.train_tokenizer import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    random = Random(0)
    save_tokenizer(train_tokenizer([_sentence(random, 20) for _ in range(50)], vocab_size=320), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    from data_pipeline.tokenization import load_tokenizer

    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    from transformers import ByT5Tokenizer

    from data_pipeline.tokenization import load_tokenizer

    folder = tmp_path_factory.mktemp("byt5")
    ByT5Tokenizer().save_pretrained(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def t5_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of the shape of T5's own: sentencepiece unigram, hundred extra ids, no template tokens."""
    from transformers import T5Tokenizer

    from data_pipeline.tokenization import load_tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("▁cat", -3.1)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder = tmp_path_factory.mktemp("t5")
    T5Tokenizer(vocab=pieces).save_pretrained(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of the shape of BERT's: [CLS] and [SEP], and no end of a sequence by that name."""
    from transformers import BertTokenizer

    from data_pipeline.tokenization import load_tokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", *"abcdefghijklmnopqrstuvwxyz<>/[]"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(str(folder))
    return load_tokenizer(folder)


@pytest.fixture(params=["tokenizer", "byte_tokenizer", "t5_tokenizer", "bert_tokenizer"])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the plans' tasks one after the other in this process; tasks and answers still travel as JSON."""
    from data_pipeline import plan, ray_session

    def in_order(tasks: Sequence[Any], work: Callable[[Any], Any], actors: Any = None) -> Iterator[Any]:
        for task in tasks:
            yield json.loads(json.dumps(work(json.loads(json.dumps(task)))))

    plan._worker_encoder.cache_clear()
    monkeypatch.setattr(plan, "_in_order", in_order)
    monkeypatch.setattr(ray_session, "ray_session", contextlib.nullcontext)
