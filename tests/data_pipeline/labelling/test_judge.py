from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import endpoint as client
from data_pipeline.endpoint import Endpoint
from data_pipeline.errors import UserError
from data_pipeline.journal import Journal
from data_pipeline.labelling.judge import (
    A_BETTER,
    B_BETTER,
    SAME_BAD,
    SAME_GOOD,
    VERDICTS,
    Judge,
    combine,
    judged,
    parse_verdict,
)
from data_pipeline.schema import Candidate, Example
from tests.data_pipeline.chat_server import ChatServer, Reply, Request, chat_server, refuse, say, send

pytestmark = pytest.mark.timeout(300)
TEMPLATE = "{question}|{first}|{second}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server, and a client that is in a hurry."""
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    with chat_server() as running:
        yield running


def row(*texts: str, models: str = "abcdefgh", **changes: Any) -> Example:
    candidates = tuple(Candidate(name, "", text, {}) for name, text in zip(models, texts, strict=False))
    return Example("id", "which", "", "", candidates, **changes)


def ask(
    server: ChatServer,
    folder: Path,
    rows: list[Example],
    overwrite: bool = False,
    required: bool = True,
    **changes: Any,
) -> Any:
    """(verdicts of each row, counts, replies) of a judge with a journal in `folder`. required: its replies to all."""
    settings = {"name": "j", "base_url": server.url, "model": "m", "retries": 0, "timeout_s": 10.0, **changes}
    with Journal(folder / "judge.jsonl") as journal:
        judge, replies = Judge(Endpoint(**settings), TEMPLATE, journal), Counter()
        judge.ask(
            lambda: (pair for row in rows for pair in judge.pairs(row, overwrite)[0]), lambda n: replies.update(n=n)
        )
        verdicts, counts = judged(judge, rows, overwrite)
        if required:
            judge.require_replies(counts)
        return verdicts, counts, replies["n"]


def by_length(request: Request) -> Callable[..., None]:
    """The longer answer is the better one, wherever it stands."""
    _, first, second = request.question.split("|")
    return say(A_BETTER if len(first) > len(second) else B_BETTER if len(first) < len(second) else SAME_BAD)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A is better", A_BETTER),
        (" b IS better.\n", B_BETTER),
        ("**Same good**", SAME_GOOD),
        ("Verdict: same bad", SAME_BAD),
        ("**Verdict:** *a is better*.", A_BETTER),
        ("The first is wrong.\n\n  B is better!\n", B_BETTER),
        ("A is better.\nA is better", A_BETTER),
        ("A is better\nB is better", None),
        ("A is better or B is better", None),
        ("It is not true that A is better", None),
        ("A is better. Or is it?", None),
        ("I doubt that\nA is better than the other.", None),
        ("Verdicts A is better", None),
        ("Banana is better", None),
        ("", None),
        ("I cannot compare them.", None),
    ],
)
def test_a_reply_holds_one_verdict_or_none(reply: str, verdict: str | None):
    assert parse_verdict(reply) == verdict


def test_both_orders_are_combined():
    assert combine(A_BETTER, B_BETTER) == A_BETTER  # the second order calls the same answer B
    assert combine(B_BETTER, A_BETTER) == B_BETTER
    assert combine(A_BETTER, A_BETTER) == combine(B_BETTER, B_BETTER) == SAME_GOOD  # the place won
    assert combine(SAME_BAD, SAME_BAD) == combine(A_BETTER, SAME_BAD) == combine(SAME_BAD, A_BETTER) == SAME_BAD
    assert combine(SAME_GOOD, B_BETTER) == combine(SAME_GOOD, SAME_BAD) == SAME_GOOD


@pytest.mark.parametrize(("forward", "backward"), list(product(VERDICTS, VERDICTS)))
def test_swapping_the_candidates_swaps_the_verdict(forward: str, backward: str):
    mirrored = {A_BETTER: B_BETTER, B_BETTER: A_BETTER}
    verdict = combine(forward, backward)
    assert combine(backward, forward) == mirrored.get(verdict, verdict)


def test_every_pair_is_asked_in_both_orders(server: ChatServer, tmp_path: Path):
    server.reply = by_length
    verdicts, counts, replies = ask(server, tmp_path, [row("x", "xxx", "xx"), row("yy", "zz")], system="be fair")
    assert verdicts == [{"a,b": B_BETTER, "a,c": B_BETTER, "b,c": A_BETTER}, {"a,b": SAME_BAD}]
    assert (counts, replies) == (Counter(computed=4), 8)
    assert sorted(server.questions) == sorted(
        f"which|{one}|{other}" for one, other in [("x", "xxx"), ("x", "xx"), ("xxx", "xx"), ("yy", "zz")]
        for one, other in [(one, other), (other, one)]
    )  # fmt: skip
    assert server.requests[0].payload["messages"][0] == {"role": "system", "content": "be fair"}


def test_what_cannot_or_need_not_be_compared_is_counted(server: ChatServer, tmp_path: Path):
    server.reply = by_length
    rows = [
        row("x", " ", "xx"),
        row("x", "xx", models=["m,1", "n"]),
        row("x", "xx", models=["m", "m"]),
        row("x", "xx", "xxx", cmp_results={"b,a": SAME_GOOD}),
    ]
    verdicts, counts, _ = ask(server, tmp_path, rows)
    assert verdicts == [{"a,c": B_BETTER}, {}, {}, {"a,c": B_BETTER, "b,c": B_BETTER}]
    assert counts == Counter(computed=3, empty_text=2, comma_in_name=1, same_model=1, kept=1)
    verdicts, counts, _ = ask(server, tmp_path, rows[3:], overwrite=True)
    assert verdicts == [{"a,b": B_BETTER, "a,c": B_BETTER, "b,c": B_BETTER}]


def test_nonsense_is_asked_for_once_more_and_then_left_out(server: ChatServer, tmp_path: Path):
    def reply(request: Request) -> Callable[..., None]:
        again = len(request.payload["messages"]) > 1
        return say("hm" if "stubborn" in request.payload["messages"][0]["content"] or not again else SAME_GOOD)

    server.reply = reply
    verdicts, counts, replies = ask(server, tmp_path, [row("x", "y"), row("stubborn", "y")])
    assert verdicts == [{"a,b": SAME_GOOD}, {}]
    assert (counts, replies, len(server.requests)) == (Counter(computed=1, nonsense=1), 8, 8)
    assert [message["role"] for message in server.requests[-1].payload["messages"]] == ["user", "assistant", "user"]
    assert ask(server, tmp_path, [row("x", "y"), row("stubborn", "y")])[:2] == (verdicts, counts)
    assert len(server.requests) == 8  # nor is nonsense asked for a third time


def test_an_endpoint_that_goes_down_is_told_and_nothing_answered_is_asked_again(server: ChatServer, tmp_path: Path):
    rows = [row(*(f"{'x' * i}{name}" for i, name in enumerate("abcdef")))]
    server.reply = lambda request: by_length(request) if request.number < 10 else refuse(500)
    with pytest.raises(UserError, match=r"judge j does not answer \(.*HTTP 500.*run the same command again"):
        ask(server, tmp_path, rows, concurrency=1, give_up_after=2)
    journal = (tmp_path / "judge.jsonl").read_text().splitlines()
    assert len(journal) == 10
    (tmp_path / "judge.jsonl").write_text("\n".join(journal[:9]) + "\n" + journal[9][:20])  # a kill cut the last line
    asked = set(server.questions[:9])
    server.requests.clear()
    server.reply = by_length
    verdicts, counts, replies = ask(server, tmp_path, rows)
    assert (len(verdicts[0]), counts, replies) == (15, Counter(computed=15), 21)
    assert not asked & set(server.questions)
    assert all(json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines())


def test_a_damaged_line_of_the_journal_is_asked_for_anew(server: ChatServer, tmp_path: Path):
    server.reply = by_length
    rows, journal = [row("x", "xx", "xxx")], tmp_path / "judge.jsonl"
    first = ask(server, tmp_path, rows)
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[:2], b'{"key": "ab', *lines[3:]]) + b"\n")
    again = ask(server, tmp_path, rows)
    assert (again[:2], again[2]) == (first[:2], 1)
    assert ask(server, tmp_path, rows)[2] == 0


@pytest.mark.parametrize("concurrency", [1, 8])
def test_equal_questions_are_asked_once(server: ChatServer, tmp_path: Path, concurrency: int):
    server.reply = by_length
    verdicts, counts, replies = ask(
        server, tmp_path, [row("x", "xx"), row("x", "xx"), row("x", "x")], concurrency=concurrency
    )
    assert (verdicts, counts) == ([{"a,b": B_BETTER}, {"a,b": B_BETTER}, {"a,b": SAME_BAD}], Counter(computed=3))
    assert replies == len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "reason"), [(refuse(503), "server_error"), (send(b"{"), "bad_answer"), (refuse(429), "busy")]
)
def test_a_pair_without_a_reply_for_the_endpoints_sake_is_told_and_can_be_had_later(
    server: ChatServer, tmp_path: Path, trouble: Reply, reason: str
):
    rows = [row("x", "xx", "zzz", "y" * 9)]
    server.reply = lambda request: trouble if "x|zzz" in request.question else by_length(request)
    said = (
        rf"judge j has not replied on 2 of 6 pairs \({reason} 2; .*\); every reply so far is kept: run the same command"
    )
    with pytest.raises(UserError, match=said):
        ask(server, tmp_path, rows, concurrency=1)
    verdicts, counts, _ = ask(server, tmp_path, rows, required=False)
    assert counts == Counter({"computed": 4, reason: 2})
    assert "a,c" not in verdicts[0]
    server.requests.clear()
    server.reply = by_length
    assert ask(server, tmp_path, rows)[1:] == (Counter(computed=6), 2)
    assert len(server.requests) == 2


def test_every_reply_reaches_the_disk_by_the_end(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.reply = by_length
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    ask(server, tmp_path, [row("x", "xx", "xxx")])
    assert synced[-1] == (tmp_path / "judge.jsonl").stat().st_size


def test_an_endpoint_that_is_down_is_one_clear_sentence(server: ChatServer, tmp_path: Path):
    with pytest.raises(UserError, match=r"judge j does not answer \(no connection to j at http://127\.0\.0\.1:9/v1"):
        ask(server, tmp_path, [row("x", "y")], base_url="http://127.0.0.1:9/v1")


def test_a_question_that_fails_alone_is_left_out_with_its_reason(server: ChatServer, tmp_path: Path):
    server.reply = lambda request: refuse(400, "too long") if "zzz" in request.question else by_length(request)
    verdicts, counts, _ = ask(server, tmp_path, [row("x", "xx", "zzz")])
    assert (verdicts, counts) == ([{"a,b": B_BETTER}], Counter(computed=1, rejected=2))
    assert ask(server, tmp_path, [row("x", "xx", "zzz")])[:2] == (verdicts, counts)  # also where nothing else is left
