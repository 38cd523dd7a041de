"""A real `mlflow server`, to be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.ports import free_ports


def dead_uri() -> str:
    """A URL of loopback that nothing listens on."""
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@dataclass
class MlflowServer:
    """A server on a free port, in a process group of its own, with its database in `folder`."""

    folder: Path
    port: int
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def start(self, timeout: float = 120) -> None:
        """Start it, and return when it answers."""
        process = self.launch()
        deadline = time.monotonic() + timeout
        while not self.answers():
            assert process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "mlflow server does not answer"
            time.sleep(0.5)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it, and don't wait for it."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment |= {"MLFLOW_SERVER_ALLOWED_HOSTS": f"{self.host}:{self.port}"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )
        return self.process

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        if self.process:
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process:
            self.signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@contextmanager
def mlflow_server(folder: Path, host: str = "127.0.0.1") -> Iterator[MlflowServer]:
    """A server that answers, and is gone at the end of the block. host: the address that it listens on."""
    folder.mkdir()
    server = MlflowServer(folder, free_ports(1)[0], host)
    try:
        server.start()
        yield server
    finally:
        server.kill()
