"""A language model as judge and as fuser, behind a server of our own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from data_pipeline.errors import UserError
from tests.urg.systems.tiny import ROWS, row
from urg.systems import SYSTEMS, Setup
from urg.systems.judge import read_order

pytestmark = pytest.mark.timeout(60)


class Server(ThreadingHTTPServer):
    """Answers each chat by a function of its last message; None: an error."""

    answer: Callable[[str], str | None]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.asked.append(text)  # type: ignore[attr-defined]
        answer = self.server.answer(text)  # type: ignore[attr-defined]
        content = json.dumps({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}).encode()
        self.send_response(200 if answer is not None else 400)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join(timeout=10)


@pytest.fixture
def setup(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = tmp_path / "judge.yaml"
    file.write_text(f"name: gpt\nbase_url: http://127.0.0.1:{server.server_port}/v1\nmodel: gpt\n")
    said: list[str] = []
    return Setup("quality", (), folders={"judge": str(file)}, progress=lambda what, done, of: said.append(what),
                 shared={"said": said})  # fmt: skip


def shown(text: str) -> list[str]:
    """The answers of a request, in the order shown."""
    return re.findall(r"Answer \d+:\n(.*?)(?=\n\nAnswer |\n\nReply|\Z)", text, re.S)


def by_length(text: str) -> str:
    """Longest first, as a judge would put it."""
    answers = shown(text)
    order = sorted(range(len(answers)), key=lambda i: -len(answers[i]))
    return "I weigh 3 things.\n" + ", ".join(str(i + 1) for i in order)


def test_the_judges_order_becomes_scores_whatever_the_order_shown(server: Server, setup: Setup) -> None:
    server.answer = by_length
    rows = [row(str(r), [f"{'x' * n}{r}" for n in (3, 1, 9, 5)]) for r in range(12)]
    answers = SYSTEMS["judge_rank"](setup).answer(rows)
    assert [answer and answer.picked for answer in answers] == [2] * 12
    assert answers[0] is not None
    assert answers[0].scores is not None
    assert answers[0].scores.tolist() == [2.0, 1.0, 4.0, 3.0]
    assert len({tuple(len(text) for text in shown(text)) for text in server.asked}) > 4  # orders differ by row


def test_a_lone_candidate_is_not_asked_about_and_failures_are_told(server: Server, setup: Setup) -> None:
    server.answer = lambda text: None if "two" in text else by_length(text)
    system = SYSTEMS["judge_rank"](setup)
    answers = system.answer([ROWS[1], ROWS[2], ROWS[3]])
    assert [answer and answer.picked for answer in answers] == [0, None, 1]
    said = setup.shared["said"]
    assert isinstance(said, list)
    assert any("1 of 2 rows have none, such as 3: gpt answered HTTP 400" in line for line in said)


def test_the_fuser_sees_all_candidates_and_its_text_is_the_answer(server: Server, setup: Setup) -> None:
    server.answer = lambda text: f" {len(shown(text))} answers\n"
    answers = SYSTEMS["judge_fuse"](setup).answer(ROWS[:2])
    assert [(a and a.text, a and a.used, a and a.picked) for a in answers] == [
        ("4 answers", (0, 1, 2, 3), None),
        ("1 answers", (0,), None),
    ]
    assert "what is the best\nto this" in server.asked[0]


def test_no_usable_answer_at_all_is_one_sentence(server: Server, setup: Setup) -> None:
    server.answer = lambda text: "I cannot say."
    with pytest.raises(UserError, match=r"gpt gave no answer that can be used: 2 of 2 .* no order of 4 answers"):
        SYSTEMS["judge_rank"](setup).answer([ROWS[0], ROWS[0]])


@pytest.mark.parametrize("answer", ["", "none", "1, 1, 2", "0, 1", "1, 2, 4"])
def test_what_is_no_order_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="no order of 3 answers"):
        read_order(answer, 3)
    assert read_order("Answer 2 > Answer 1\n\n", 3) == [2, 1]


@pytest.mark.parametrize(
    "content", ["- 1", "name: x", "name: x\nbase_url: http://a\nmodel: m\nkey: s", "{", "a: [", "3"]
)
def test_a_file_that_describes_no_endpoint_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "judge.yaml").write_text(content)
    with pytest.raises(UserError, match=r"judge\.yaml"):
        SYSTEMS["judge_fuse"](Setup("quality", (), folders={"judge": str(tmp_path / "judge.yaml")}))
