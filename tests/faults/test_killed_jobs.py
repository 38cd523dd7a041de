"""Evaluation and labelling are killed and started again by the same command: the result is an undisturbed one's.

The same for preparing shards, collecting and sweeps: tests/data_pipeline and tests/tuning.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from data_pipeline.shards import ShardSet
from tests.data_pipeline.chat_server import Reply, Request, chat_server, hang, say
from tests.faults.training import ROOT
from tests.urg.systems.tiny import T5_SHAPE, bert_tokenizer, config, make_ranker, save, save_fuser
from urg.evaluation.answering import INSTANT, ON_REQUEST
from urg.model import URG, Settings
from urg.systems import FOLDERS, SYSTEMS
from urg.systems.pair_ranker import PairRanker
from urg.systems.simcls import SimCLS
from urg.systems.summareranker import SummaReranker

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]


def _start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )


def _finish(command: list[str]) -> str:
    process = _start(command)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_an_evaluation_of_all_systems_is_killed_and_repeats_no_finished_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of its systems, twice: where the judge is asked to rank, and where it is asked to fuse, which it
    does not answer as long as the command lives."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    undisturbed, hurt = tmp_path / "undisturbed", tmp_path / "hurt"
    kept: dict[str, tuple[int, int]] = {}
    systems = [name for name in SYSTEMS if name not in ON_REQUEST]
    with chat_server() as server:
        options = _every_system(tmp_path, shards, server.url)

        def command(output: Path) -> list[str]:
            return ["urg.evaluate", "--systems", "all", "--output", str(output), *options]

        server.reply = _judge
        _finish(command(undisturbed))
        for stop, request in (("judge_rank", "numbered answers"), ("judge_fuse", "single best answer")):
            server.requests.clear()
            server.reply = lambda asked, request=request: hang if request in asked.question else _judge(asked)
            process = _start(command(hurt))
            while not any(request in question for question in server.questions):
                assert process.poll() is None, process.communicate()[0][-3000:]
                time.sleep(0.02)
            _kill(process)
            left = _stamps(hurt / "answers")
            assert list(left) == systems[: systems.index(stop)]
            assert kept.items() <= left.items(), "written again"
            kept = left
        server.requests.clear()
        server.reply = _judge
        said = _finish(command(hurt))
    assert f"kept from an earlier run: {', '.join(name for name in kept if name not in INSTANT)}\n" in said
    assert kept.items() <= _stamps(hurt / "answers").items(), "written again"
    assert all("single best answer" in question for question in server.questions), "the ranks were there"
    assert not set(systems) & set(json.loads((hurt / "metrics.json").read_text())["missing"])
    for name in ("metrics.json", "predictions.parquet", "tables.md"):
        written = (hurt / name).read_bytes().replace(str(hurt).encode(), str(undisturbed).encode())
        assert written == (undisturbed / name).read_bytes(), name


def _judge(request: Request) -> Reply:
    """An order of the answers, or a text."""
    count = re.search(r"(\d+) numbered answers", request.question)
    return say(", ".join(map(str, range(1, int(count[1]) + 1))) if count else f"{len(request.question)} characters")


def _stamps(answers: Path) -> dict[str, tuple[int, int]]:
    """System → what tells whether its file was written again, in the order of SYSTEMS."""
    found = {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in answers.glob("*.parquet")}
    return {name: found[name] for name in SYSTEMS if name in found}


def _every_system(folder: Path, shards: Path, judge: str) -> list[str]:
    """Options of `urg.evaluate` that name a tiny model for each system, on a few rows of a prepared set."""
    prepared, tokenizer = ShardSet.open(shards), bert_tokenizer()
    urg = URG.from_scratch(len(prepared.tokenizer()), Settings(label="rougeL"), **T5_SHAPE)
    urg.save_pretrained(folder / "urg")
    prepared.tokenizer().save_pretrained(folder / "urg")
    for cls in (PairRanker, SimCLS, SummaReranker):
        ranker = make_ranker(cls)
        ranker.save_pretrained(folder / cls.system, {name: p.detach() for name, p in ranker.named_parameters()})
    save_fuser(folder / "gen_fuser")
    for name, auto, changes in (
        ("mlm_scoring", AutoModelForMaskedLM, {}),
        ("reward_model", AutoModelForSequenceClassification, {"num_labels": 1}),
    ):
        save(folder / name, auto.from_config(config("bert", len(tokenizer), **changes)), tokenizer)
    (folder / "judge").write_text(f"name: gpt\nbase_url: {judge}\nmodel: gpt\n")
    (folder / "imported").write_text(
        "".join(json.dumps({"id": row_id, "text": row_id}) + "\n" for row_id in prepared.split("test").ids)
    )
    options = {f"folders.{name}": folder / name for name in FOLDERS}
    options |= {"model": folder / "urg", "shards": shards, "track": "false", "device": "cpu", "num_beams": 1}
    options |= {"max_new_tokens": 4, "statistics.resamples": 100, "statistics.trials": 100}
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def test_labelling_is_killed_at_random_moments(tmp_path: Path) -> None:
    from data_pipeline.sample import generate_rows

    random, rows = Random(0), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in generate_rows("train", 60)))

    def command(output: Path) -> list[str]:
        options = ["--metrics", "rouge,bleu", "--overwrite", "true", "--rows_per_shard", "5"]
        return ["data_pipeline.label", "--input", str(rows), "--output", str(output), *options]

    started = time.monotonic()
    _finish(command(tmp_path / "undisturbed"))
    seconds, killed = time.monotonic() - started, 0
    while killed < 3:
        started, process = time.monotonic(), _start(command(tmp_path / "hurt"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.3, 0.9) * seconds)
            seconds = time.monotonic() - started  # it was done before: it finds its files in memory, or less to do
        _kill(process)
        killed += process.returncode == -signal.SIGKILL
    _finish(command(tmp_path / "hurt"))
    assert _content(tmp_path / "hurt") == _content(tmp_path / "undisturbed")


def _content(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which names the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
