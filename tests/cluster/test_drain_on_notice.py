"""`python -m cluster.drain_on_notice` with a metadata service on loopback and a `ray` that notes what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError, RpcError
from ray.train.v2._internal.constants import PREEMPTION_POLL_INTERVAL_S_ENV_VAR

from cluster import drain_on_notice
from cluster.ports import free_ports
from urg.training.notices import ASK_RAY_EVERY_S

AWS = "/latest/meta-data/spot/instance-action"
GCP = "/computeMetadata/v1/instance/preempted"


class Metadata(ThreadingHTTPServer):
    """Says `pages`, one after the other and the last for ever; None: there is no such page."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.pages: list[str | None] = []
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def page(self) -> str | None:
        self.asked += 1
        return self.pages[min(self.asked, len(self.pages)) - 1]


class Answer(BaseHTTPRequestHandler):
    """As the clouds do: AWS wants a token that was asked for by PUT, Google Cloud a header."""

    server: Metadata

    def do_PUT(self) -> None:
        wanted = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._say("a token" if wanted else None)

    def do_GET(self) -> None:
        on_aws = self.path == AWS and self.headers.get("X-aws-ec2-metadata-token") == "a token"
        on_gcp = self.path == GCP and self.headers.get("Metadata-Flavor") == "Google"
        self._say(self.server.page() if on_aws or on_gcp else None)

    def _say(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def drained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `ray` was called with, a line an argument."""
    monkeypatch.setattr(drain_on_notice, "own_node", lambda: ("abc", "10.0.0.1:6379"))
    monkeypatch.setattr(drain_on_notice.time, "sleep", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a trap: the metadata are the machine's own
    command = tmp_path / "ray"
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path / "called"}\n')
    command.chmod(0o755)
    return tmp_path / "called"


def notice(seconds: float) -> str:
    """AWS's page about an end so many seconds from now."""
    return json.dumps({"action": "terminate", "time": f"{datetime.now(UTC) + timedelta(seconds=seconds):%FT%TZ}"})


@pytest.mark.parametrize(
    ("cloud", "pages", "least", "most"),
    [
        ("aws", [None, None, 3600.0], 2500, 2700),
        ("aws", [None, "a page of another form"], 80, 88),
        ("aws", [-5.0], 1, 1),
        ("gcp", ["FALSE", "FALSE", "TRUE"], 15, 21),
    ],
)
def test_the_node_is_drained_when_there_is_a_notice(
    cloud: str, pages: list[str | float | None], least: int, most: int, metadata: Metadata, drained: Path
) -> None:
    metadata.pages = [notice(page) if isinstance(page, float) else page for page in pages]
    assert drain_on_notice.main([cloud, "--metadata", metadata.url]) == 0
    assert metadata.asked == len(pages)
    *order, deadline = drained.read_text().splitlines()
    assert order == [
        "drain-node",
        "--address=10.0.0.1:6379",
        "--node-id=abc",
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=the cloud takes the machine away",
    ]
    assert least <= int(deadline.removeprefix("--deadline-remaining-seconds=")) <= most


def test_ray_has_this_command() -> None:
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    options = ("--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds")
    assert [option for option in (*options, "DRAIN_NODE_REASON_PREEMPTION") if option not in said] == []


@pytest.mark.parametrize(
    "error", [ConnectionError("no cluster"), RaySystemError("no cluster"), RpcError("no cluster"), TimeoutError()]
)
def test_a_ray_that_does_not_answer_is_told_later(
    error: Exception,
    metadata: Metadata,
    drained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    answers: list[Exception | tuple[str, str]] = [error, ("abc", "10.0.0.1:6379")]

    def own_node() -> tuple[str, str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(drain_on_notice, "own_node", own_node)
    metadata.pages = ["TRUE"]
    assert drain_on_notice.main(["gcp", "--metadata", metadata.url]) == 0
    assert f"Ray cannot be told: {type(error).__name__}: {error}" in capfd.readouterr().err
    assert drained.read_text().count("drain-node") == 1


@pytest.mark.parametrize("fault", ["exit 1", "exec sleep 100"])
def test_a_ray_that_refuses_or_hangs_is_told_again_with_the_time_that_is_left(
    fault: str, metadata: Metadata, drained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google Cloud says `TRUE` at each look, not how long ago it began to."""
    monkeypatch.setattr(drain_on_notice, "RAY_ANSWERS_S", 5.0)
    command, once = drained.with_name("ray"), drained.with_name("once")
    first, *rest = command.read_text().splitlines()
    command.write_text("\n".join([first, *rest, f"[ -e {once} ] || {{ touch {once}; {fault}; }}\n"]))
    metadata.pages = ["TRUE"]
    assert drain_on_notice.main(["gcp", "--metadata", metadata.url, "--every", "0"]) == 0
    begun, ended = (
        int(line.partition("=")[2]) for line in drained.read_text().splitlines() if line.startswith("--deadline")
    )
    assert 0 < ended <= begun - (3 if "sleep" in fault else 0)


@pytest.mark.parametrize("look", [drain_on_notice.seconds_left_on_aws, drain_on_notice.seconds_left_on_gcp])
def test_where_nobody_answers_there_is_no_notice(look: object) -> None:
    (port,) = free_ports(1)
    assert callable(look)
    assert look(f"http://127.0.0.1:{port}") is None


def test_the_readme_says_how_long_a_checkpoint_may_take() -> None:
    """From the look that finds the notice until Ray knows the deadline: four seconds, to join Ray and start `ray`."""
    seconds = {
        cloud: int((left - drain_on_notice.LOOK_EVERY_S - 4) * drain_on_notice.PART_FOR_THE_TRAINING)
        for cloud, left in drain_on_notice.NOTICE_SECONDS.items()
    }
    readme = Path(drain_on_notice.__file__).with_name("README.md").read_text()
    assert (
        f"about {seconds['aws']} s on AWS; on Google Cloud {seconds['gcp']} s, less a second or two and two" in readme
    )
    assert ASK_RAY_EVERY_S == 1
    image = Path(drain_on_notice.__file__).with_name("Dockerfile").read_text()
    assert f"{PREEMPTION_POLL_INTERVAL_S_ENV_VAR}=1 " in image
