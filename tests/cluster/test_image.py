"""cluster/Dockerfile, as far as it can be tried without a container engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()


def cuda_check(folder: Path) -> str:
    """The command that compares the CUDAs, with a compiler in `folder` instead of the image's."""
    (command,) = re.findall(r"^RUN (if \[ -d /usr/local/cuda \].*?fi)\n\n", DOCKERFILE, re.M | re.S)
    return str(command).replace("\\\n", "").replace("/usr/local/cuda", str(folder / "cuda"))


def make_command(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("compiler", "torch", "code"),
    [("12.6", "12", 0), ("12.1", "13", 1), ("12.6", "no", 1), ("13.0", "13", 0), (None, "no", 0)],
)
def test_an_image_whose_pytorch_is_for_another_cuda_is_not_built(
    compiler: str | None, torch: str, code: int, tmp_path: Path
) -> None:
    if compiler:
        release = f"nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {compiler}, V{compiler}.85"
        make_command(tmp_path / "cuda" / "bin" / "nvcc", release)
    make_command(tmp_path / "python", torch)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", cuda_check(tmp_path)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert bool(code) == ("take two that fit" in done.stderr)


@pytest.mark.parametrize("name", ["cluster/Dockerfile", "cluster/README.md"])
def test_the_commands_for_the_gpu_image_name_two_that_fit(name: str) -> None:
    commands = re.findall(r"docker build [^\n]*:gpu(?:[^\n]*\\\n)?[^\n]*", (ROOT / name).read_text())
    assert commands
    for command in commands:
        (tag,) = re.findall(r"RAY_TAG=[\w.]+-py311-cu(\d+)", command)
        assert f"TORCH_INDEX=https://download.pytorch.org/whl/cu{tag} " in f"{command} "
