from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from data_pipeline import endpoint as endpoint_module
from data_pipeline.collect import collect, main
from data_pipeline.collection.config import CollectConfig
from data_pipeline.config import PrepareConfig
from data_pipeline.errors import UserError
from data_pipeline.prepare import prepare
from data_pipeline.shards import ShardSet
from data_pipeline.sources import list_source
from tests.data_pipeline.chat_server import ChatServer, Reply, Request, chat_server, drop, refuse, say

pytestmark = pytest.mark.timeout(300)
Write = Callable[..., Path]
ROOT = Path(__file__).parents[2]
KEY = "sk-Very-secret-key"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr(endpoint_module, "_FIRST_WAIT_S", 0.01)
    with chat_server() as running:
        running.reply = lambda request: say(f"{request.payload['model']} on {request.question}")
        yield running


@pytest.fixture
def run(server: ChatServer, write_rows: Write, tmp_path: Path) -> Callable[..., Path]:
    """run(rows, a={…}, b={…}): collect from these models at the server (settings over the defaults); the output."""

    def collect_from(rows: list[Any], /, **models: dict[str, Any]) -> Path:
        entries = [entry(server, name, **changes) for name, changes in (models or {"a": {}}).items()]
        path = write_rows("prompts.jsonl", rows)
        return collect(CollectConfig(entries, str(path), str(tmp_path / "out"))).parent

    return collect_from


def entry(server: ChatServer, name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "base_url": server.url, "model": name.upper(), "timeout_s": 5.0, "retries": 2, **changes}


def made(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"p/{i}", "instruction": f"q{i}", **more} for i in range(count)]


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def texts(out: Path) -> dict[str, dict[str, str]]:
    """id → model → text."""
    rows = read_rows(out)
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: {each["model"]: each["text"] for each in row["candidates"]} for row in rows}


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def content(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("rows.jsonl", "records/quarantine.jsonl", "manifest.json")}


def test_rows_are_what_prepare_reads(
    run: Callable[..., Path], without_ray: None, tokenizer_folder: Path, tmp_path: Path
):
    rows = [*made(3, output="ref"), {"id": 9, "input": "only input", "extra": {"kept": True}}]
    out = run(rows, a={}, b={"template": "Q: {question}"})
    assert texts(out)["p/1"] == {"a": "A on q1", "b": "B on Q: q1"}
    assert texts(out)[9] == {"a": "A on only input", "b": "B on Q: only input"}
    assert [{**row, "candidates": 0} for row in read_rows(out)] == [{**row, "candidates": 0} for row in rows]
    config = PrepareConfig({"train": str(out / "rows.jsonl")}, str(tmp_path / "set"), tokenizer=str(tokenizer_folder))
    prepared = ShardSet.open(prepare(config))
    assert prepared.manifest["totals"] == {"input": 4, "kept": 4, "rejected": {}}
    assert prepared.split("train")[0].models == ("a", "b")


def test_counts_add_up_and_bad_prompts_are_set_aside(run: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    out = run([*made(2), {"instruction": "no id"}, b"{", made(1)[0]])
    assert manifest(out)["counts"] == {
        "input": 5,
        "kept": 2,
        "rejected": {"bad_json": 1, "duplicate_id": 1, "missing_key": 1},
    }
    records = [json.loads(line) for line in (out / "records" / "quarantine.jsonl").read_text().splitlines()]
    assert [(each["line"], each["reason"]) for each in records] == [
        (3, "missing_key"),
        (4, "bad_json"),
        (5, "duplicate_id"),
    ]
    assert [file.name for file in list_source(str(out))] == [str(out / "rows.jsonl")]
    shown = capsys.readouterr()
    assert "rows: 5 read, 2 kept, rejected: bad_json 1, duplicate_id 1, missing_key 1" in shown.out
    assert "a: 2 of 2, 0 failed" in shown.err


@pytest.mark.parametrize("refusal", [refuse(400, "too long"), refuse(403, "flagged by moderation")])
def test_prompts_that_an_endpoint_rejects_first_do_not_keep_it_from_the_others(
    run: Callable[..., Path], server: ChatServer, refusal: Reply
):
    bad = {f"q{i}" for i in range(8)}
    server.reply = lambda request: refusal if request.question in bad else say("ok")
    for asked in (20, 8):  # the second run asks for what is missing, and is not stuck
        server.requests.clear()
        out = run(made(20), a={"give_up_after": 3, "concurrency": 1})
        assert list(texts(out)) == [f"p/{i}" for i in range(8, 20)]
        assert manifest(out)["models"]["a"]["missing"] == {"rejected": 8}
        assert len(server.requests) == asked


def test_a_model_that_fails_is_left_out_and_asked_again_later(run: Callable[..., Path], server: ChatServer):
    down = True

    def reply(request: Request) -> Any:
        if request.payload["model"] == "B" and down:
            return drop
        if request.payload["model"] == "C" and request.question in ("q1", "q3"):
            return refuse(400, "too long")
        return say(f"{request.payload['model']} on {request.question}")

    server.reply = reply
    models: dict[str, Any] = {"a": {}, "b": {"retries": 1, "give_up_after": 2, "concurrency": 1}, "c": {}}
    out = run(made(6), **models)
    assert [sorted(each) for each in texts(out).values()] == [
        ["a", "c"],
        ["a"],
        ["a", "c"],
        ["a"],
        ["a", "c"],
        ["a", "c"],
    ]
    counted = {name: (each["answered"], each["missing"]) for name, each in manifest(out)["models"].items()}
    assert counted == {"a": (6, {}), "b": (0, {"connection": 2, "not_asked": 4}), "c": (4, {"rejected": 2})}
    assert "too long" in manifest(out)["models"]["c"]["examples"]["rejected"]
    assert Counter(request.payload["model"] for request in server.requests)["B"] == 4
    down = False
    server.requests.clear()
    run(made(6), **models)
    assert Counter(request.payload["model"] for request in server.requests) == {"B": 6, "C": 2}
    assert [sorted(each) for each in texts(out).values()][:2] == [["a", "b", "c"], ["a", "b"]]


def test_a_prompt_that_nobody_answers_is_no_row(run: Callable[..., Path], server: ChatServer):
    server.reply = lambda request: refuse(400) if request.question == "q1" else say("ok")
    out = run(made(3))
    assert manifest(out)["counts"] == {"input": 3, "kept": 2, "rejected": {"no_candidates": 1}}
    (record,) = map(json.loads, (out / "records" / "quarantine.jsonl").read_text().splitlines())
    assert (record["line"], record["reason"], json.loads(record["raw"])["id"]) == (2, "no_candidates", "p/1")


def test_all_models_failing_ends_with_what_they_said_and_leaves_the_rows_before(
    run: Callable[..., Path], server: ChatServer
):
    server.reply = lambda request: refuse(401, "bad key")
    with pytest.raises(UserError, match=r"No model answered .*a: a answered HTTP 401: bad key.*b: b answered HTTP 401"):
        run(made(3), a={}, b={})
    server.reply = lambda request: say("ok")
    out = run(made(3))
    before = content(out)
    server.reply = lambda request: refuse(401, "bad key")
    with pytest.raises(UserError, match="No model answered"):
        run(made(3), c={})
    assert content(out) == before


def test_candidates_that_are_there_are_kept_and_not_asked_for(run: Callable[..., Path], server: ChatServer):
    old = {"model": "a", "text": "old", "scores": {"x": 1}, "decoding_method": "beam"}
    out = run([{"id": "1", "instruction": "q", "candidates": [old], "cmp_results": "null"}, *made(1)], a={}, b={})
    row = read_rows(out)[0]
    assert row["candidates"][0] == old
    assert texts(out) == {"1": {"a": "old", "b": "B on q"}, "p/0": {"a": "A on q0", "b": "B on q0"}}
    assert (manifest(out)["models"]["a"]["had"], manifest(out)["models"]["a"]["answered"]) == (1, 1)
    assert len(server.requests) == 3
    again = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert texts(run(again, a={}, b={})) == texts(out)  # one's own rows as the prompts: nothing is doubled
    assert len(server.requests) == 3


def test_what_changed_is_asked_anew_and_nothing_else(run: Callable[..., Path], server: ChatServer):
    def asked(rows: list[Any], **models: dict[str, Any]) -> list[tuple[str, str]]:
        server.requests.clear()
        run(rows, **models)
        return sorted((request.payload["model"], request.question) for request in server.requests)

    rows = made(2)
    assert len(asked(rows, a={}, b={})) == 4
    assert asked(rows, a={}, b={}) == []
    assert asked(rows, a={"concurrency": 1, "retries": 0}, b={}) == []
    changed = [rows[0], {**rows[1], "instruction": "new"}]
    assert asked(changed, a={}, b={}) == [("A", "new"), ("B", "new")]
    assert asked(changed, a={"template": "T {question}"}, b={}) == [("A", "T new"), ("A", "T q0")]
    assert asked(changed, a={"parameters": {"temperature": 1}}, b={}) == [("A", "new"), ("A", "q0")]
    assert asked(rows[:1], a={}) == []  # the first settings again: their answers are still there
    assert asked([*rows, *made(3)[2:]], a={}) == [("A", "q2")]


@pytest.mark.faults
def test_killed_again_and_again_it_repeats_no_answered_question_and_loses_no_row(
    server: ChatServer, write_rows: Write, tmp_path: Path
):
    def reply(request: Request) -> Any:
        time.sleep(0.02)
        if len(request.question) % 2 and request.number % 7 == 3:
            return refuse(500)
        return say(f"{request.payload['model']} on {request.question}")

    server.reply = reply
    random, count = Random(0), 60
    path = write_rows("prompts.jsonl", [*made(count), b"bad"])
    out = tmp_path / "killed"
    command = command_for(server, path, out, tmp_path / "models.yaml", concurrency=3, retries=8)
    for sent in [signal.SIGKILL] * 4 + [signal.SIGINT]:
        journaled = answered_in(out)
        ended = kill_after(server, random.randrange(1, 30), command, sent)
        assert ended == (130 if sent == signal.SIGINT else -sent)
        again = {(request.payload["model"], request.question) for request in server.requests}
        assert not again & set(journaled)
        assert set(journaled) <= set(answered_in(out))
        assert not (out / "rows.jsonl").exists()
        with next(iter((out / "journal").glob("a-*"))).open("ab") as file:
            file.write(b'{"key": "0123", "te')  # what a machine that loses power leaves
    journaled = answered_in(out)
    server.requests.clear()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    again = {(request.payload["model"], request.question) for request in server.requests}
    assert not again & set(journaled)
    assert len(again) + len(set(journaled)) == 2 * count
    assert Counter(answered_in(out)) == Counter({(model, f"q{i}"): 1 for i in range(count) for model in "AB"})
    undisturbed = tmp_path / "undisturbed"
    command[command.index(str(out))] = str(undisturbed)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=240)
    assert content(out) == content(undisturbed)
    assert manifest(out)["counts"] == {"input": count + 1, "kept": count, "rejected": {"bad_json": 1}}


def kill_after(server: ChatServer, count: int, command: list[str], sent: signal.Signals) -> int:
    """Run the command and end it the moment the server is asked for the `count`th time; its exit code."""
    server.requests.clear()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(server.requests) < count and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(sent)
        return process.wait(30)
    finally:
        process.kill()
        process.wait(10)


def command_for(server: ChatServer, prompts: Path, out: Path, models: Path, **changes: Any) -> list[str]:
    models.write_text(yaml.safe_dump([entry(server, "a", **changes), entry(server, "b", **changes)]))
    command = [sys.executable, "-m", "data_pipeline.collect", "--models", str(models), "--prompts", str(prompts)]
    return [*command, "--output", str(out)]


def answered_in(out: Path) -> list[tuple[str, str]]:
    """(model, question) of every whole line of the journals."""
    lines = [line for path in (out / "journal").glob("*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    found = [json.loads(line)["text"].split(" on ") for line in lines if line.endswith(b"\n")]
    return [(model, question) for model, question in found]


def test_the_key_is_nowhere(server: ChatServer, write_rows: Write, tmp_path: Path):
    # By question, not by number: two models ask at once, and either may come first.
    rejected = {"q0", "q2", "q4"}
    server.reply = lambda request: (
        refuse(400, f"your key {request.headers['Authorization']} …") if request.question in rejected else say("ok")
    )
    path, out = write_rows("prompts.jsonl", made(6)), tmp_path / "out"
    command = command_for(server, path, out, tmp_path / "models.yaml", api_key_env="COLLECT_TEST_KEY", concurrency=1)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "COLLECT_TEST_KEY": KEY}
    )
    assert done.returncode == 0, done.stderr
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    written = [path.read_text() for path in out.rglob("*") if path.is_file()]
    assert "Bearer ***" in manifest(out)["models"]["a"]["examples"]["rejected"]
    assert not any(KEY in text for text in [done.stdout, done.stderr, *written])
    lines = done.stdout.splitlines()
    assert f"results: {out / 'rows.jsonl'}" in lines
    assert lines[0] == "6 prompts for 2 models: 12 answers to ask for"
    assert lines[-1].startswith(f"next: python -m data_pipeline.label --input {out / 'rows.jsonl'} ")


@pytest.mark.parametrize(
    ("models", "prompts", "said"),
    [
        (
            "- name: a\n  base_url: http://127.0.0.1:9/v1\n  model: x\n  retries: 0\n",
            None,
            "No model answered any prompt",
        ),
        ("- {name: a, path: x/y}\n- {name: a, path: x/z}\n", None, "2 models have the name a"),
        ("- name: [\n", None, "is not YAML"),
        ("- {name: a, path: x/y, sped: 3}\n", None, "sped"),
        ("- {name: a, path: ./nowhere}\n", None, "There is no folder nowhere"),
        ("- {name: a, base_url: 'http://h/v1', model: x, api_key_env: NOT_SET_ANYWHERE}\n", None, "NOT_SET_ANYWHERE"),
        (None, b'{"instruction": "q"}\n', "the row has no id"),
        (None, b"", "it is empty"),
        (None, False, "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_asked(
    server: ChatServer, tmp_path: Path, models: str | None, prompts: bytes | bool | None, said: str
):
    listed, path = tmp_path / "models.yaml", tmp_path / "prompts.jsonl"
    listed.write_text(models or yaml.safe_dump([entry(server, "a")]))
    if prompts is not False:
        path.write_bytes(b'{"id": "1", "instruction": "q"}\n' if prompts is None else bytes(prompts))
    with pytest.raises(UserError, match=said) as caught:
        main(CollectConfig(str(listed), str(path), str(tmp_path / "out")))
    assert "\n" not in str(caught.value)
    assert not server.requests
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_the_command_line_says_it_in_one_line(tmp_path: Path):
    config = tmp_path / "collect.yaml"
    config.write_text("models: []\nprompts: absent.jsonl\n")
    command = [sys.executable, "-m", "data_pipeline.collect", "--config", str(config)]
    for more, said in (([], "models is an empty list"), (["--promts", "x"], "promts")):
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=240, env=env())
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_two_runs_in_one_folder_do_not_mix(run: Callable[..., Path], server: ChatServer, tmp_path: Path):
    from data_pipeline.commit import locked

    with locked(tmp_path / "out"), pytest.raises(UserError, match="Another process collects candidates"):
        run(made(1))
    assert not server.requests


def test_a_full_disk_is_said_and_the_run_can_be_repeated(
    run: Callable[..., Path], server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(UserError, match="No space left"):
            run(made(3))
    out = run(made(3))
    assert len(texts(out)) == 3
    assert len(server.requests) == 3


def test_on_a_terminal_there_is_a_bar(server: ChatServer, write_rows: Write, tmp_path: Path):
    path = write_rows("prompts.jsonl", made(3))
    command = command_for(server, path, tmp_path / "out", tmp_path / "models.yaml")
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal says that its other side is gone
            while chunk := os.read(ours, 10_000):
                shown += chunk
        os.close(ours)
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert b"3/3" in shown
    assert b"\x1b" not in printed
