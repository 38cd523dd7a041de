from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.ray_session import on_cluster, ray_session


@pytest.mark.parametrize("error", [ConnectionError("nobody\nthere"), RuntimeError("nobody"), ValueError("nobody")])
def test_a_cluster_that_does_not_answer_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch):
    import ray

    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS auto does not answer \(nobody\); start"), ray_session():
        pass
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(type(error)), ray_session():
        pass


@pytest.mark.parametrize(("address", "cluster"), [(None, False), ("", False), ("local", False), ("head:6379", True)])
def test_a_cluster_is_what_an_address_names(address: str | None, cluster: bool, monkeypatch: pytest.MonkeyPatch):
    """And nothing else starts or joins another Ray than it says."""
    import ray

    joined: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: joined.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("data_pipeline.ray_session._connect", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with ray_session():
        assert on_cluster() is cluster
    assert joined == [address if cluster else "local"]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_is_tried_before_ray_does_which_takes_minutes(scheme: str, monkeypatch: pytest.MonkeyPatch):
    import ray

    joined: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: joined.append(address))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("data_pipeline.ray_session._PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with ray_session():
            assert joined == [address]
    with (
        pytest.raises(UserError, match=rf"RAY_ADDRESS {address} does not answer \(.*Connection refused"),
        ray_session(),
    ):
        pass
    assert joined == [address]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dead_address_is_one_sentence_of_every_command(
    make_rows: Callable[..., Any], write_rows: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path
):
    rows = str(write_rows("a.jsonl", make_rows(2)))
    common = ["--input", rows, "--output", str(tmp_path / "out")]
    for command in (
        ["data_pipeline.label", *common, "--metrics", "bleu"],
        ["data_pipeline.prepare", *common, "--tokenizer", str(tokenizer_folder)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            timeout=140,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        )
        assert done.returncode == 2, done.stderr
        assert "error: RAY_ADDRESS 127.0.0.1:1 does not answer (" in done.stderr
        assert "Traceback" not in done.stderr
