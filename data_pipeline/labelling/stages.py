"""The stages of a labelling: check the rows, score them, have them judged, write them. Finished work is found again."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.endpoint import api_key
from data_pipeline.journal import Journal
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.labelling.job import JOURNAL, LabelJob, Pass
from data_pipeline.labelling.judge import Judge, Pair, judged
from data_pipeline.labelling.progress import progress
from data_pipeline.labelling.report import RECORDS, build_manifest, next_command, summary
from data_pipeline.labelling.rows import ShardLabeller
from data_pipeline.labelling.scoring import GOES_ON, ShardScorer, read_examples, write_whole
from data_pipeline.manifest import write_manifest
from data_pipeline.plan import Actors, actors_alive, on_actors, survey_input

MEND = f"lower batch_tokens or actors, or give them more memory: {GOES_ON}"
"""What helps where actors die."""
Task = Mapping[str, Any]


def build(job: LabelJob) -> None:
    """Make the set in its work folder (which must be locked) and rename it into place; say what was made."""
    if job.config.judge is not None and job.judge_folder:
        api_key(job.config.judge)  # a key that is missing is said before hours of scoring
    staged = job.config.work / "output"
    shutil.rmtree(staged, ignore_errors=True)
    (staged / RECORDS).mkdir(parents=True)
    manifest = _fill(job, staged)
    os.rename(staged, job.config.folder)  # onto nothing, or an empty folder
    print("\n".join([*summary(manifest, job), f"next: {next_command(manifest, job)}"]))


def _fill(job: LabelJob, staged: Path) -> dict[str, Any]:
    """Write the whole set into `staged`, its manifest last; the manifest."""
    from data_pipeline.ray_session import ray_session

    with ray_session():
        print(f"reading {len(job.files)} file{'s' * (len(job.files) > 1)}", flush=True)
        survey = survey_input(job.files, job.config.checks(), staged / RECORDS)
        survey.require_rows()
        tasks = job.tasks(survey)
        counts: dict[str, Counter[str]] = {}
        for each in job.passes():
            counts |= score(job, each, tasks)
        pairs = judge(job, tasks) if job.judge_folder else Counter()
        with actors_alive("the writing of rows", MEND):
            reports = list(on_actors(tasks, _labeller(job, staged), _actors(job.config, tasks)))
    manifest = build_manifest(job, survey, counts, pairs, reports)
    if job.judge_folder:
        shutil.copyfile(job.config.work / JOURNAL, staged / RECORDS / JOURNAL)
    write_manifest(manifest, staged)
    return manifest


def score(job: LabelJob, each: Pass, tasks: Sequence[Task]) -> dict[str, Counter[str]]:
    """One pass over the shards that it has not scored yet; by field what became of each candidate."""
    folder = job.config.work / each.folder
    folder.mkdir(exist_ok=True)
    todo = [task for task in tasks if not _path(folder, task).exists()]
    config, rows = job.config, sum(map(_rows, tasks))
    done = rows - sum(map(_rows, todo))
    print(f"{each.name}: {rows} rows" + (f", {done} of them done before" if done else ""), flush=True)
    scorer = ShardScorer(_paths(job), config.checks().rules(), each.fields, each.models, config.overwrite, str(folder))
    gpus = config.num_gpus if any(model.name for model in each.models.values()) else 0
    with progress(each.name, rows, "rows", done) as advance, actors_alive(each.name, MEND):
        for report in on_actors(todo, scorer, _actors(config, todo, gpus)) if todo else ():
            advance(report["rows"])
    counts: dict[str, Counter[str]] = {}
    for task in tasks:
        for field, found in json.loads(_path(folder, task).read_text(encoding="utf-8"))["counts"].items():
            counts.setdefault(field, Counter()).update(found)
    return counts


def judge(job: LabelJob, tasks: Sequence[Task]) -> Counter[str]:
    """Have the pairs of all rows compared, and leave each shard's verdicts in the judge's folder; counts of pairs.

    Raises `UserError` where pairs lack a reply that a next run may get, unless those are accepted as missing.
    """
    config, folder = job.config, job.config.work / job.judge_folder
    assert config.judge is not None
    folder.mkdir(exist_ok=True)
    counts: Counter[str] = Counter()
    with Journal(job.config.work / JOURNAL) as journal:
        asker = Judge(config.judge, config.judge_template, journal)
        pairs = _pairs(job, asker, tasks)
        questions = sum(1 for _ in asker.open_questions(pairs()))
        print(f"judge: {questions} questions to {config.judge.name}", flush=True)
        with progress("judge", questions, "replies") as advance:
            asker.ask(pairs, advance)
        for task in tasks:
            verdicts, found = judged(asker, read_examples(_paths(job), task, config.checks().rules()), config.overwrite)
            counts += found
            write_whole(_path(folder, task), json.dumps({"verdicts": verdicts}))
        if not config.accept_missing:
            asker.require_replies(counts)
    return counts


def _pairs(job: LabelJob, asker: Judge, tasks: Sequence[Task]) -> Callable[[], Iterator[Pair]]:
    """All pairs to be compared, read shard by shard at each call."""

    def pairs() -> Iterator[Pair]:
        for task in tasks:
            for example in read_examples(_paths(job), task, job.config.checks().rules()):
                yield from asker.pairs(example, job.config.overwrite)[0]

    return pairs


def _labeller(job: LabelJob, staged: Path) -> ShardLabeller:
    """What writes the labelled shards."""
    return ShardLabeller(
        paths=_paths(job),
        rules=job.config.checks().rules(),
        fields=[field for fields in job.config.fields().values() for field in fields],
        scores=[str(job.config.work / each.folder) for each in job.passes()],
        verdicts=str(job.config.work / job.judge_folder) if job.judge_folder else "",
        output=str(staged),
    )


def _actors(config: LabelConfig, tasks: Sequence[Task], gpus: float = 0.0) -> Actors:
    """The pool for `tasks`: no more actors than there are tasks."""
    return Actors(min(config.actors, len(tasks)), config.cpus_per_actor, gpus)


def _path(folder: Path, task: Task) -> Path:
    return folder / f"{task['name']}.json"


def _paths(job: LabelJob) -> list[str]:
    return [str(file.path) for file in job.files]


def _rows(task: Task) -> int:
    return len(task["files"])
