"""The generated corpus that ships with the project: MixInstruct's schema, simulated models, real metrics.

    python -m data_pipeline.sample --output data/sample --train 4000 --dev 200 --test 300 --seed 0

Every row's facts are drawn afresh, so nothing of the test split can be known from the train split: what can be learned
is to check a candidate against its question, and to copy the right parts. All of it is generated and says so: ids begin
with "generated/", decoding methods are "simulated", and the folder gets a README.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.sample.kinds import KINDS, draw_task
from data_pipeline.sample.models import MODELS
from data_pipeline.sample.tasks import Task

__all__ = [
    "SAMPLE_LABEL",
    "SPLITS",
    "SampleConfig",
    "compare",
    "generate_rows",
    "score_texts",
    "write_sample",
]

BASE_MODEL = Path(__file__).parent / "base"
"""The small T5 that ships with the project, pre-trained by `python -m urg.pretrain`; its tokenizer is the sample's."""

SAMPLE_LABEL = "rougeL"
"""The score to rank by. ROUGE-L pays for each right part in its place, takes off for what wasn't asked, and does not
see capitals and bullets. Sentence BLEU of short answers depends on where a slip stands: one wrong word of six gives 76
at the end and 38 in the middle."""

SPLITS = ("train", "dev", "test")
_PIECE = 400  # rows that one process generates at a time


@dataclass(frozen=True)
class SampleConfig:
    """A generated corpus: how many rows for each split, from which seed, into which folder."""

    output: Path
    """Folder for train.jsonl, dev.jsonl, test.jsonl, metadata.json and README.md; made if it is missing."""
    train: int = 4000
    """Rows of the train split (0 or more)."""
    dev: int = 200
    """Rows of the dev split (0 or more)."""
    test: int = 300
    """Rows of the test split (0 or more)."""
    seed: int = 0
    """Seeds give different corpora; row i of a split depends on seed, split and i alone."""

    def __post_init__(self) -> None:
        for split in SPLITS:
            if getattr(self, split) < 0:
                raise UserError(f"{split}={getattr(self, split)} is not a number of rows: give 0 or more.")


def generate_rows(split: str, rows: int, seed: int = 0, first: int = 0) -> Iterator[dict[str, Any]]:
    """Rows `first` to `first + rows - 1` of a split, in MixInstruct's schema.

    A row is the same however many are asked for, so several processes can make a split in pieces.
    Raises UserError for a split other than train, dev, test.
    """
    if split not in SPLITS:
        raise UserError(f"The sample has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return (_row(split, index, seed) for index in range(first, first + rows))


def write_sample(output: Path, rows: Mapping[str, int], seed: int = 0) -> dict[str, Path]:
    """Write `rows` (by split) as JSON lines into the folder `output`, with a README; the files written, by split.

    Raises UserError where the folder can't be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        files = {split: _write_split(output, split, number, seed) for split, number in rows.items()}
        _write_about(output, rows, seed)
    except OSError as error:
        raise UserError(
            f"Can't write the sample to {output} ({error.strerror}): choose another output folder."
        ) from error
    return files


def _laid_out(task: Task, rng: Random) -> tuple[str, str]:
    """(instruction, input): most rows have both; as in MixInstruct, some have only one of them."""
    point = rng.random()
    if point < 0.10:
        return "", f"{task.context}\n{task.request}"
    if point < 0.25:
        return f"{task.context} {task.request}", ""
    return task.request, task.context


def _row(split: str, index: int, seed: int) -> dict[str, Any]:
    # A string seed is hashed by SHA-512: the same on every machine, and unrelated for neighbours.
    rng = Random(f"{seed}/{split}/{index}")
    kind, task = draw_task(split, rng)
    instruction, context = _laid_out(task, rng)
    reference = task.reference()
    texts = [model.answer(task, kind, rng) for model in MODELS]
    scores = score_texts(texts, reference)
    candidates = [
        {"decoding_method": "simulated", "model": model.name, "text": text, "scores": score}
        for model, text, score in zip(MODELS, texts, scores, strict=True)
    ]
    # MixInstruct has comparisons for its test split; "null" stands for none.
    compared = "null" if split == "train" else json.dumps(compare(candidates))
    return {
        "id": f"generated/{kind}/{split}-{seed}-{index}",
        "instruction": instruction,
        "input": context,
        "output": reference,
        "candidates": candidates,
        "cmp_results": compared,
    }


def score_texts(texts: Sequence[str], reference: str) -> list[dict[str, float]]:
    """ROUGE (0..1) and sentence BLEU (0..100) of each text against the reference, rounded to 6 places."""
    from data_pipeline.quality.bleu import sentence_bleu
    from data_pipeline.quality.rouge import rouge

    references = [reference] * len(texts)
    columns = rouge(texts, references) | {"bleu": sentence_bleu(texts, references)}
    return [{name: round(column[i], 6) for name, column in columns.items()} for i in range(len(texts))]


def compare(candidates: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Simulated verdicts on each pair of models, derived from the label: MixInstruct's keys and words."""
    verdicts = {}
    for a, b in combinations(candidates, 2):
        label_a, label_b = a["scores"][SAMPLE_LABEL], b["scores"][SAMPLE_LABEL]
        if abs(label_a - label_b) > 0.05:
            verdict = "A is better" if label_a > label_b else "B is better"
        else:
            verdict = "Same good" if label_a + label_b > 1.4 else "Same bad"
        verdicts[f"{a['model']},{b['model']}"] = verdict
    return verdicts


def _write_split(folder: Path, split: str, rows: int, seed: int) -> Path:
    """One split as JSON lines; a large one is generated by several processes, piece by piece, to the same bytes."""
    pieces = [(split, min(_PIECE, rows - first), seed, first) for first in range(0, rows, _PIECE)]
    path = folder / f"{split}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        if len(pieces) < 3:
            file.writelines(map(_lines, pieces))
        else:  # spawned: the caller may have threads
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
                file.writelines(processes.map(_lines, pieces))
    return path


def _lines(piece: tuple[str, int, int, int]) -> str:
    """Rows of `generate_rows(*piece)` as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in generate_rows(*piece))


def _write_about(folder: Path, rows: Mapping[str, int], seed: int) -> None:
    about = {
        "generated": True,
        "generator": "data_pipeline.sample",
        "seed": seed,
        "rows": dict(rows),
        "kinds": list(KINDS),
        "models": [model.name for model in MODELS],
        "label": SAMPLE_LABEL,
    }
    (folder / "metadata.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README, encoding="utf-8")


_README = """# A generated corpus

No person and no language model wrote these rows: a program drew the facts, worded the questions, and simulated the
answers of twelve models, named sim-*. The scores are real metrics of those texts against the computed references; the
comparisons (`cmp_results`) are derived from ROUGE-L. Use it to try the software, never to judge a language model.

`metadata.json` has the seed and the numbers that make these files anew.
"""


def main(config: SampleConfig) -> None:
    """Write the generated corpus as JSON lines: train, dev and test in MixInstruct's schema."""
    rows = {split: getattr(config, split) for split in SPLITS}
    for split, path in write_sample(config.output, rows, config.seed).items():
        print(f"{rows[split]:>6} generated rows  {path}")
