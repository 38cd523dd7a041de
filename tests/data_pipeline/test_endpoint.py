from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from data_pipeline import endpoint as module
from data_pipeline.endpoint import Endpoint, Failure, Messages, ask, ask_each
from data_pipeline.errors import UserError
from tests.data_pipeline.chat_server import (
    ChatServer,
    Reply,
    chat_server,
    drop,
    flood,
    hang,
    refuse,
    say,
    send,
    trickle,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """The server, and a client that is in a hurry."""
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.02)
    with chat_server() as running:
        yield running


def at(server: ChatServer, **changes: Any) -> Endpoint:
    return Endpoint(**{"name": "m", "base_url": server.url, "model": "m-1", "timeout_s": 10.0, **changes})


def questions(count: int) -> list[tuple[int, Messages]]:
    return [(i, [{"role": "user", "content": f"q{i}"}]) for i in range(count)]


def test_every_question_gets_its_own_answer(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    asked = at(server, parameters={"temperature": 0.5}, api_key_env="TEST_KEY")
    assert dict(ask_each(asked, questions(20))) == {i: f"answer to q{i}" for i in range(20)}
    request = server.requests[0]
    assert (request.path, request.headers["Authorization"]) == ("/v1/chat/completions", "Bearer sk-secret")
    assert {name: request.payload[name] for name in ("model", "temperature")} == {"model": "m-1", "temperature": 0.5}
    assert "secret" not in repr(asked)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (refuse(500), "server_error"),
        (refuse(529), "server_error"),
        (refuse(408), "server_error"),
        (refuse(429, Retry_After="0"), "busy"),
        (drop, "connection"),
        (hang, "timeout"),
        (trickle, "timeout"),
        (send(b'{"choices": ['), "bad_answer"),
        (send(b"<html>"), "bad_answer"),
        (send(b'{"choices": []}'), "bad_answer"),
        (send(b"[" * 100_000), "bad_answer"),
        (send(b"ab", Content_Encoding="gzip"), "connection"),
    ],
)
def test_trouble_that_passes_is_tried_again_and_no_longer_than_allowed(server: ChatServer, trouble: Reply, reason: str):
    server.reply = lambda request: trouble if request.number == 0 else say("at last")
    asked = at(server, timeout_s=1.0 if reason == "timeout" else 60.0, retries=1)  # a busy machine is slow to answer
    assert list(ask_each(asked, questions(1))) == [(0, "at last")]
    server.reply = lambda request: trouble
    ((_, failure),) = ask_each(asked, questions(1))
    assert isinstance(failure, Failure)
    assert failure.reason == reason
    assert "m" in failure.message
    assert len(server.requests) == 2 + 2


@pytest.mark.parametrize(
    ("trouble", "reason", "said"),
    [
        (refuse(400, "too long"), "rejected", "too long"),
        (refuse(422), "rejected", "HTTP 422"),
        (send(b"", 302, Location="http://127.0.0.1:1/"), "rejected", "HTTP 302"),
        (refuse(403, "flagged"), "rejected", r"flagged \(key: TEST_KEY\)"),
        (refuse(403, "not with this key", "model_not_found"), "refused", r"not with this key \(key: TEST_KEY\)"),
        (refuse(401, "Incorrect API key: sk-secret"), "refused", r"Incorrect API key: \*\*\* \(key: TEST_KEY\)"),
        (refuse(404, "no model m-1"), "refused", "no model m-1"),
        (refuse(429, "pay first", "insufficient_quota"), "refused", "pay first"),
        (refuse(429, "busy", Retry_After="86400"), "refused", "wait 86400 s"),
        (say(None), "no_text", "without a text"),
        (say("half", "content_filter"), "content_filter", "withheld"),
    ],
)
def test_trouble_that_stays_is_not_tried_again(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, trouble: Reply, reason: str, said: str
):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    server.reply = lambda request: trouble
    ((_, failure),) = ask_each(at(server, api_key_env="TEST_KEY"), questions(1))
    assert isinstance(failure, Failure)
    assert failure.reason == reason
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(failure.message)
    assert "sk-secret" not in repr(failure)
    assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["1", "date"])
def test_retry_after_holds_every_question_back(server: ChatServer, header: str):
    server.reply = lambda request: (
        refuse(429, Retry_After="1" if header == "1" else formatdate(time.time() + 2, usegmt=True))
        if request.number == 0
        else say("ok")
    )
    answers = ask_each(at(server, concurrency=1), questions(3))
    assert sorted(answers) == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert server.requests[1].at - server.requests[0].at >= 0.9


def test_waits_grow_and_vary(server: ChatServer):
    server.reply = lambda request: refuse(500)
    for _ in range(2):
        list(ask_each(at(server, retries=3), questions(1)))
    times = [request.at for request in server.requests]
    first, second = ([b - a for a, b in itertools.pairwise(run)] for run in (times[:4], times[4:]))
    for waits in (first, second):
        assert all(wait >= 0.01 * 2**i for i, wait in enumerate(waits))
    assert first != second


def test_concurrency_and_rate_are_kept(server: ChatServer):
    gate = threading.Barrier(3, timeout=60)

    def together(_: object) -> None:
        gate.wait()

    server.reply = lambda request: (together(request), say("ok"))[1]
    assert len(list(ask_each(at(server, concurrency=3), questions(9)))) == 9
    assert server.most_at_once == 3
    server.requests.clear()
    server.reply = lambda request: say("ok")
    begin = time.monotonic()
    list(ask_each(at(server, concurrency=3, requests_per_minute=300), questions(5)))
    assert server.requests[-1].at - begin >= 4 * 0.2


def test_memory_is_bounded_by_concurrency(server: ChatServer):
    read: list[int] = []

    def endless() -> Iterator[tuple[int, Messages]]:
        for i in itertools.count():
            read.append(i)
            yield i, [{"role": "user", "content": f"q{i}"}]

    answers = ask_each(at(server, concurrency=2), endless())
    for taken in range(1, 11):
        next(answers)
        assert len(read) <= taken + 2
    answers.close()


@pytest.mark.parametrize("refusal", [refuse(401, "who are you"), refuse(403, "who are you", "model_not_found")])
def test_a_refused_key_is_asked_about_once_not_for_every_question(server: ChatServer, refusal: Reply):
    server.reply = lambda request: refusal
    results = [answer for _, answer in ask_each(at(server, concurrency=1), questions(50))]
    assert Counter(result.reason for result in results) == {"refused": 1, "not_asked": 49}
    assert "who are you" in results[-1].message
    assert len(server.requests) == 1


def test_an_endpoint_that_is_down_is_given_up_early(server: ChatServer):
    server.reply = lambda request: say("ok") if request.number < 3 else drop
    results = [answer for _, answer in ask_each(at(server, concurrency=2, retries=1, give_up_after=4), questions(50))]
    assert results.count("ok") == 3
    assert {result.reason for result in results if isinstance(result, Failure)} == {"connection", "not_asked"}
    assert len(server.requests) < 30
    # Of two requests that are out at once the slower may end last of all, as a failure of its own.
    not_asked = [each.message for each in results if isinstance(each, Failure) and each.reason == "not_asked"]
    given_up = "given up after 4 failures in a row (give_up_after): no connection to m"
    assert all(given_up in message for message in not_asked)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (refuse(400), "rejected"),
        (refuse(403), "rejected"),
        (say(None), "no_text"),
        (say("half", "content_filter"), "content_filter"),
    ],
)
def test_questions_that_fail_one_by_one_do_not_end_the_rest(
    server: ChatServer, trouble: Reply, reason: str, first: int
):
    failing = {f"q{i}" for i in range(first, first + 19)}
    server.reply = lambda request: trouble if request.question in failing else say("ok")
    results = dict(ask_each(at(server, concurrency=1, give_up_after=3), questions(25)))
    assert Counter(str(getattr(result, "reason", result)) for result in results.values()) == {reason: 19, "ok": 6}


def test_an_answer_without_end_is_broken_off(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_ANSWER_BYTES", 10_000)
    server.reply = lambda request: flood
    ((_, failure),) = ask_each(at(server, timeout_s=60), questions(1))
    assert isinstance(failure, Failure)
    assert (failure.reason, len(server.requests)) == ("bad_answer", 1)
    assert "without end" in failure.message


def test_nobody_there(server: ChatServer):
    nowhere = at(server, base_url="http://127.0.0.1:9/v1", retries=1)
    ((_, failure),) = ask_each(nowhere, questions(1))
    assert isinstance(failure, Failure)
    assert failure.reason == "connection"
    assert "http://127.0.0.1:9/v1" in failure.message


@pytest.mark.parametrize("key", [None, "", "sk-\u2028secret", "sk-\nsecret"])
def test_a_key_that_is_missing_or_broken_is_said_before_anything_is_asked(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, key: str | None
):
    monkeypatch.delenv("TEST_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(UserError, match="TEST_KEY") as caught:
        list(ask_each(at(server, api_key_env="TEST_KEY"), questions(1)))
    assert "secret" not in str(caught.value)
    assert server.requests == []


def test_what_the_questions_raise_is_raised(server: ChatServer):
    def broken() -> Iterator[tuple[int, Messages]]:
        yield from questions(1)
        raise UserError("the file ended")

    with pytest.raises(UserError, match="the file ended"):
        list(ask_each(at(server, concurrency=1), broken()))


@pytest.mark.parametrize("status", [407, 502])
def test_the_proxys_password_is_in_no_message(server: ChatServer, monkeypatch: pytest.MonkeyPatch, status: int):
    with refusing_tunnels(status) as address:
        monkeypatch.setattr(module, "_proxy", lambda base_url: f"http://user:passw0rd@{address}")
        asked = at(server, base_url="https://127.0.0.1:1/v1", retries=0)
        ((_, failure),) = ask_each(asked, questions(1))
    assert isinstance(failure, Failure)
    assert (failure.reason, f"HTTP {status}" in failure.message) == ("connection", True)
    assert "passw0rd" not in repr(failure)


@contextmanager
def refusing_tunnels(status: int) -> Iterator[str]:
    """A proxy that answers every CONNECT with `status`; its host:port."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join(10)


def test_a_login_in_a_text_from_outside_is_cut(server: ChatServer):
    server.reply = lambda request: refuse(400, "see http://user:p@ss@proxy:80/x and https://u@h or a@b")
    ((_, failure),) = ask_each(at(server), questions(1))
    assert isinstance(failure, Failure)
    assert failure.message.endswith("see http://proxy:80/x and https://h or a@b")


def test_several_endpoints_in_one_loop(server: ChatServer):
    async def both() -> list[list[tuple[int, Any]]]:
        async def one(name: str) -> list[tuple[int, Any]]:
            return [result async for result in ask(at(server, name=name), questions(5))]

        return await asyncio.gather(one("a"), one("b"))

    assert [len(results) for results in asyncio.run(both())] == [5, 5]


def test_a_lone_surrogate_becomes_text_that_a_file_can_hold(server: ChatServer):
    server.reply = lambda request: say("a\ud800b")
    assert list(ask_each(at(server), questions(1))) == [(0, "a\ufffdb")]
