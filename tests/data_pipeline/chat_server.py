"""A chat-completions server on loopback that counts what it is asked, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """One request: its number from 0, when it came (monotonic seconds), the payload and the headers."""

    number: int
    at: float
    path: str
    payload: dict[str, Any]
    headers: dict[str, str]

    @property
    def question(self) -> str:
        return self.payload["messages"][-1]["content"]


Reply = Callable[[BaseHTTPRequestHandler], None]


def send(body: bytes, status: int = 200, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def say(text: Any, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    return send(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}).encode())


def refuse(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    return send(json.dumps({"error": {"message": message, "code": code}}).encode(), status, **headers)


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def hang(handler: BaseHTTPRequestHandler) -> None:
    handler.server.closing.wait(30)  # type: ignore[attr-defined]
    handler.close_connection = True


def flood(handler: BaseHTTPRequestHandler) -> None:
    """An answer that comes as fast as it is read and does not end."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while not handler.server.closing.is_set():  # type: ignore[attr-defined]
            handler.wfile.write(b" " * 4096)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """An answer that comes byte by byte and does not end within a test's patience."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.close_connection = True
    while not handler.server.closing.wait(0.05):  # type: ignore[attr-defined]
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return


@dataclass
class ChatServer:
    """The server: where it is, what it was asked, and what it replies (a function of the request)."""

    url: str
    reply: Callable[[Request], Reply] = lambda request: say(f"answer to {request.question}")
    requests: list[Request] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def questions(self) -> list[str]:
        return [request.question for request in self.requests]


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A running `ChatServer` on a free port."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                request = Request(len(server.requests), time.monotonic(), self.path, payload, dict(self.headers))
                server.requests.append(request)
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                server.reply(request)(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    server.at_once -= 1

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:  # a killed client is no news
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    http.closing = threading.Event()  # type: ignore[attr-defined]
    server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.closing.set()  # type: ignore[attr-defined]
        http.shutdown()
        http.server_close()
        thread.join(10)
