"""The judge through the whole command: killed, babbling, and now and then without an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import endpoint as client
from data_pipeline.errors import UserError
from data_pipeline.label import label
from data_pipeline.labelling.config import LabelConfig
from data_pipeline.labelling.judge import A_BETTER, SAME_GOOD
from data_pipeline.models import Endpoint
from tests.data_pipeline.chat_server import ChatServer, Request, chat_server, refuse, say

pytestmark = pytest.mark.timeout(300)
Rows = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server, and a client that is in a hurry."""
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    with chat_server() as running:
        running.reply = lambda request: say(SAME_GOOD)
        yield running


def verdicts(folder: Path) -> list[dict[str, str]]:
    """The verdicts of each row."""
    lines = [line for path in sorted(folder.glob("rows-*")) for line in path.read_text().splitlines()]
    return [json.loads(json.loads(line)["cmp_results"]) or {} for line in lines]


def judged_pairs(folder: Path) -> dict[str, int]:
    return json.loads((folder / "manifest.json").read_text())["judge"]["pairs"]


def test_pairs_that_fail_for_a_while_are_had_by_the_same_command_and_can_be_gone_without(
    without_ray: None, server: ChatServer, make_rows: Rows, write_rows: Write, tmp_path: Path
):
    rows = make_rows(5)
    failing = rows[3]["candidates"][0]["text"]
    judge = Endpoint("j", server.url, "m", retries=1)
    path = str(write_rows("a.jsonl", rows))

    def run(name: str, **changes: Any) -> Path:
        return label(LabelConfig(path, str(tmp_path / name), "judge", judge=judge, rows_per_shard=2, **changes))

    server.reply = lambda request: refuse(503) if f"[Answer A]\n{failing}\n" in request.question else say(SAME_GOOD)
    for name in ("later", "without"):
        with pytest.raises(UserError, match=r"judge j has not replied on 2 of 15 pairs \(server_error 2; .*HTTP 503"):
            run(name)
        assert not (tmp_path / name).exists()
    assert judged_pairs(run("without", accept_missing=True)) == {"computed": 13, "server_error": 2}
    assert [len(each) for each in verdicts(tmp_path / "without")] == [3, 3, 3, 1, 3]
    server.reply = lambda request: say(SAME_GOOD)
    server.requests.clear()
    assert judged_pairs(run("later")) == {"computed": 15}
    assert len(server.requests) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl", "later", "without"]


def test_a_key_that_is_missing_is_said_before_anything_is_scored(
    without_ray: None, server: ChatServer, make_rows: Rows, write_rows: Write, tmp_path: Path
):
    judge = Endpoint("j", server.url, "m", api_key_env="NOT_SET_ANYWHERE")
    config = LabelConfig(str(write_rows("a.jsonl", make_rows(2))), str(tmp_path / "out"), "bleu,judge", judge=judge)
    with pytest.raises(UserError, match="NOT_SET_ANYWHERE"):
        label(config)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.faults
def test_the_command_killed_asks_no_answered_question_again_and_counts_nonsense(
    server: ChatServer, make_rows: Rows, write_rows: Write, tmp_path: Path
):
    rows = make_rows(8)
    babbled = rows[6]["candidates"][1]["text"]

    def reply(request: Request) -> Any:
        time.sleep(0.02)
        first = request.payload["messages"][0]["content"]
        return say("I cannot say." if f"[Answer A]\n{babbled}\n" in first else f"{A_BETTER}\n{request.number}")

    server.reply = reply
    path = write_rows("a.jsonl", rows)
    command = [sys.executable, "-m", "data_pipeline.label", "--input", str(path), "--metrics", "judge"]
    command += ["--judge.name", "j", "--judge.base_url", server.url, "--judge.model", "m", "--output"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    killed = tmp_path / "killed"
    with subprocess.Popen(
        [*command, str(killed)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while len(server.requests) < 17:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    journal = (tmp_path / ".killed.work" / "judge.jsonl").read_text().splitlines()
    assert len(journal) >= 17 - 4  # what was under way
    texts = [json.loads(line)["text"] for line in journal]
    answered = {server.questions[int(text.splitlines()[1])] for text in texts if text.startswith(A_BETTER)}
    server.requests.clear()
    done = subprocess.run(
        [*command, str(killed)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert not answered & set(server.questions)
    assert "pairs by j: 22 computed, 0 kept, missing: nonsense 2" in done.stdout
    pairs = dict.fromkeys(("model-0,model-1", "model-0,model-2", "model-1,model-2"), SAME_GOOD)  # A always: the place
    assert verdicts(killed) == [{"model-0,model-2": SAME_GOOD} if i == 6 else pairs for i in range(8)]
