"""The two Ray Data plans of `prepare.py`, and what runs on their workers."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.cleaning import Repairs, Rules, clean_line
from data_pipeline.config import Lengths, PrepareConfig
from data_pipeline.conversion import InputFile
from data_pipeline.encoding import Encoder, encode_rows, stands_alone
from data_pipeline.errors import UserError, first_line
from data_pipeline.lines import byte_ranges, read_places
from data_pipeline.manifest import QUARANTINE
from data_pipeline.ray_session import on_cluster
from data_pipeline.shard_writing import flat_scores, shard_statistics, write_shard
from data_pipeline.shards import TOKENIZER
from data_pipeline.survey import Survey, survey_range
from data_pipeline.tokenization import Template, load_tokenizer

RANGE_BYTES = 16 << 20
"""Bytes of input that one task of the first plan checks."""
_DEATHS: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 3}
"""How often an actor of a pool may die, and a task with it; Ray Data's own default is for ever."""


def survey_input(files: Sequence[InputFile], config: PrepareConfig, folder: Path) -> Survey:
    """The first plan: check every line of `files`, in order; bad rows, and leaks to drop, go to the quarantine."""
    parts = [
        {"file": index, "path": part.path, "start": part.start, "end": part.end}
        for index, file in enumerate(files)
        for part in byte_ranges([file.path], RANGE_BYTES)
    ]
    survey = Survey(files, config.fractions, config.rules())
    check = functools.partial(survey_range, rules=config.rules(), with_signatures=config.near_duplicates is not None)
    with (folder / QUARANTINE).open("w", encoding="utf-8") as quarantine:
        for answer in _in_order(parts, check):
            survey.add(answer, quarantine)
        survey.drop_repeated_ids(quarantine)
        survey.find_leaks(config.near_duplicates)
        if config.leaks == "drop":
            survey.drop_leaks(quarantine)
    return survey


def write_shards(
    survey: Survey, rules: Rules, lengths: Lengths, rows_per_shard: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """The second plan: tokenize the rows that `survey` keeps and write them as shards into `folder`.

    Reads the tokenizer from folder/tokenizer. Returns by split, in order, what `build_shard` reports of each shard.
    """
    tokenizer, tasks = load_tokenizer(folder / TOKENIZER), []
    for split, places in survey.places.items():
        shards = list(places.shards(rows_per_shard))
        for index, shard in enumerate(shards):
            tasks.append({"split": split, "name": f"{split}-{index:05d}-of-{len(shards):05d}.parquet", **shard})
    build = functools.partial(
        build_shard,
        paths=[str(file.path) for file in survey.files],
        rules=rules,
        lengths=lengths,
        score_names=sorted(survey.score_names),
        template=Template.from_tokenizer(tokenizer),
        alone=stands_alone(folder / TOKENIZER, tokenizer),
        folder=str(folder),
    )
    reports: dict[str, list[dict[str, Any]]] = {split: [] for split in survey.places}
    for report in _in_order(tasks, build):
        reports[report["split"]].append(report)
    return reports


def build_shard(
    task: Mapping[str, Any],
    paths: Sequence[str],
    rules: Rules,
    lengths: Lengths,
    score_names: Sequence[str],
    template: Template,
    alone: bool,
    folder: str,
) -> dict[str, Any]:
    """Read, clean, tokenize and write the rows of one shard, on a worker.

    alone: whether the tokenizer in folder/tokenizer `stands_alone`.
    Returns split; shard (its manifest entry); statistics (of `shard_statistics`); and the counts of `Repairs`.
    """
    repairs = Repairs()
    lines = read_places(paths, task["files"], task["offsets"], task["sizes"])
    examples = [clean_line(line, rules, repairs) for line in lines]
    encoded = encode_rows(examples, _worker_encoder(str(Path(folder) / TOKENIZER), template, alone), lengths)
    scores = flat_scores(examples, score_names)
    return {
        "split": task["split"],
        "shard": write_shard(Path(folder) / task["name"], examples, encoded, scores, template),
        "statistics": shard_statistics(examples, encoded, scores),
        **vars(repairs),
    }


@functools.lru_cache(maxsize=1)
def _worker_encoder(folder: str, template: Template, alone: bool) -> Encoder:
    """The encoder, once in each worker process; Ray runs one process a core, so it needs no threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return Encoder.load(Path(folder), template) if alone else Encoder.of(load_tokenizer(folder))


@dataclass(frozen=True)
class Actors:
    """A pool of processes that keep what `work` has loaded. count: how many; cpus, gpus: of each, fractions allowed."""

    count: int
    cpus: float = 1.0
    gpus: float = 0.0


def on_actors(
    tasks: Sequence[Mapping[str, Any]], work: Callable[[Mapping[str, Any]], dict[str, Any]], actors: Actors
) -> Iterator[Any]:
    """Run `work` on each task in a pool of actors, each of which has its own copy of it; the answers in order.

    A worker's OSError and UserError are raised as themselves, here.
    """
    return _in_order(tasks, work, actors)


@contextmanager
def actors_alive(what: str, mend: str) -> Iterator[None]:
    """Turn the end of a pool whose actors die, as where memory does not hold them, into a `UserError`."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayError as error:
        if isinstance(error, RayTaskError):  # our own code: a bug, which keeps its traceback
            raise
        raise UserError(f"{what} has lost its actors ({first_line(error)[:200]}); {mend}.") from error


def _in_order(
    tasks: Sequence[Mapping[str, Any]],
    work: Callable[[Mapping[str, Any]], dict[str, Any]],
    actors: Actors | None = None,
) -> Iterator[Any]:
    """Run `work` on each task as a Ray Data plan, one block a task; the answers in the tasks' order, as they come.

    actors: the pool to run on; None: stateless tasks. A worker's OSError (a full disk) and UserError are raised as
    themselves, here.
    """
    import ray

    _quieten()
    # Tasks and answers travel as JSON: as Arrow columns their lists would be guessed a type anew in every block.
    items = [{"task": json.dumps(task)} for task in tasks]
    blocks = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
    if actors is None:
        answers = blocks.map(_OnJson(work))
    else:
        require_room(actors)
        with warnings.catch_warnings():  # Ray 2.60 has no other way to say _DEATHS, and announces one
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=DeprecationWarning)
            answers = blocks.map(
                _OnJson,  # type: ignore[arg-type]  # a class is meant to be constructed in each actor
                fn_constructor_args=(work,),
                compute=ray.data.ActorPoolStrategy(size=actors.count),
                num_cpus=actors.cpus,
                num_gpus=actors.gpus,
                **_DEATHS,
            )
    answers.context.execution_options.preserve_order = True
    answers.context.enable_progress_bars = actors is None and sys.stderr.isatty()  # a pool's user shows its own
    answers.context.print_on_execution_start = False
    for row in answers.iter_rows():
        if row["os_error"]:
            raise OSError(*json.loads(row["os_error"]))
        if row["user_error"]:
            raise UserError(row["user_error"])
        yield json.loads(row["answer"])


def require_room(actors: Actors, who: str = "One actor") -> None:
    """Raise `UserError` where this machine cannot hold one actor, which would wait for ever. A cluster may yet grow."""
    import ray

    if on_cluster():
        return
    there = ray.cluster_resources()
    for kind, asked in {"CPU": actors.cpus, "GPU": actors.gpus}.items():
        if asked > there.get(kind, 0):
            raise UserError(f"{who} asks for {asked:g} {kind}, but there are {there.get(kind, 0):g}; ask for less.")


def _quieten() -> None:
    """Keep Ray Data's progress notes off the terminal, and its account of an error that is raised here anyway; its
    warnings stay. It sets the levels of loggers above these."""
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
    for name in ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"):
        logging.getLogger(name).addFilter(_only_to_its_file)


def _only_to_its_file(record: logging.LogRecord) -> bool:
    """A filter of loggers: Ray Data's log file gets an error, the terminal does not."""
    record.hide = getattr(record, "hide", False) or record.levelno >= logging.ERROR
    return True


class _OnJson:
    """`work` for rows that hold a task as JSON text: the answer as JSON text, or the error that somebody can mend.

    Ray would wrap such an error in its own, print its stack, and on some paths try the task again.
    """

    def __init__(self, work: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.work = work

    def __call__(self, row: Mapping[str, Any]) -> dict[str, str]:
        told = {"answer": "", "os_error": "", "user_error": ""}
        try:
            told["answer"] = json.dumps(self.work(json.loads(row["task"])))
        except OSError as error:
            told["os_error"] = json.dumps([error.errno, error.strerror or str(error), error.filename])
        except UserError as error:
            told["user_error"] = str(error)
        return told
