"""The command line of every module: presets, YAML, dotted overrides, --print_config, and one line where it is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from data_pipeline.cli import parse_config, run_command
from data_pipeline.errors import UserError


@dataclass(frozen=True)
class Inner:
    """A part."""

    rate: float = 0.5
    """A rate, 0 to 1."""
    name: str = "a"
    """A name."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"inner.rate={self.rate}: must be from 0 to 1.")


@dataclass(frozen=True)
class Config:
    """A whole."""

    count: int = 3
    """How many of something."""
    dry_run: bool = False
    """Only look."""
    inner: Inner = field(default_factory=Inner)
    """The part."""
    limit: float | None = None
    """A limit."""
    kind: Literal["red", "dark blue"] | None = None
    """A kind."""
    names: dict[str, str] | list[str] = field(default_factory=list)
    """Names."""


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    """A folder with the preset `small`."""
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "small.yaml").write_text("count: 1\ninner: {rate: 0.25}\n")
    return folder


def parsed(presets: Path, *arguments: str) -> Config:
    return parse_config(Config, presets=presets, argv=arguments)


@pytest.mark.parametrize("named", [["--config", "small"], ["--config=small"]])
def test_what_is_said_last_wins_and_the_rest_stays(presets: Path, named: list[str]) -> None:
    assert parsed(presets) == Config()
    assert parsed(presets, *named) == Config(1, False, Inner(0.25, "a"))
    assert parsed(presets, *named, "--inner.name", "b", "--count=7") == Config(7, False, Inner(0.25, "b"))


def test_a_file_goes_before_a_preset_of_its_name(
    presets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small").write_text("count: 9\n")
    assert parsed(presets, "--config", "small") == Config(9)


def test_what_print_config_prints_is_the_same_configuration_again(
    presets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", "small", "--inner.name", "b", "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        parsed(presets, *options, "--print_config")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    expected = {"count": 1, "dry_run": True, "inner": {"rate": 0.25, "name": "b"}}
    assert yaml.safe_load(shown) == expected | {"limit": None, "kind": None, "names": []}
    (tmp_path / "resolved.yaml").write_text(shown)
    assert parsed(presets, "--config", str(tmp_path / "resolved.yaml")) == parsed(presets, *options)


def test_help_tells_the_fields_docstrings_and_the_presets(presets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(presets, "--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "A rate, 0 to 1." in shown
    assert "presets: small." in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--inner.colour", "red"], "--inner.colour"),
        (["--inner.rat", "0.1"], "--inner.rat"),  # no abbreviations: a slip must not become another key
        (["--inner.rat", "0.1"], "; did you mean --inner.rate?"),
        (["--rate", "0.1"], "; did you mean --inner.rate?"),
        (["--nothing", "0.1"], "unrecognized arguments: --nothing 0.1 (see:"),
        (["--count", "many"], "count is many; give a whole number."),
        (["--config", "small", "--count", "many"], "error: count is many"),
        (["--limit", "many"], "limit is many; give a number or null."),
        (["--kind", "new"], "kind is new; give one of 'red', 'dark blue' or null."),
        (["--names", "x"], "names is x; give {key: value, …} or a list."),
        (["--inner", "3"], "inner is 3; give its settings one by one, as --inner.NAME VALUE."),
        (["--config", "typed.yaml"], "--config typed.yaml: inner.rate is fast; give a number."),
        (["--inner.rate", "7"], "inner.rate=7.0: must be from 0 to 1."),
        (["--config", "large"], "--config large: no such file or preset"),
        (["--config", "unknown.yaml"], "--config unknown.yaml has inner.colour, which is no setting (see:"),
        (
            ["--config", "slip.yaml"],
            "--config slip.yaml has inner.nane, which is no setting; did you mean --inner.name?",
        ),
        (["--config", "broken.yaml"], "--config broken.yaml is not YAML (line 2: "),
        (["--config", "binary.yaml"], "--config binary.yaml is not YAML (byte 8: invalid start byte)"),
        (["--config", "empty.yaml"], "--config empty.yaml holds no settings"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(
    arguments: list[str],
    said: str,
    presets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unknown.yaml").write_text("inner: {colour: red}\n")
    Path("slip.yaml").write_text("count: 2\ninner: {nane: red}\n")
    Path("typed.yaml").write_text("inner: {rate: fast}\n")
    Path("broken.yaml").write_text("inner: {rate: [\n")
    Path("binary.yaml").write_bytes(b"count: \xff\xfe\n")
    Path("empty.yaml").touch()
    with pytest.raises(SystemExit) as ended:
        parsed(presets, *arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_package_is_called_by_its_own_name() -> None:
    command = [sys.executable, "-m", "data_pipeline.sample", "--nope", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("(see: python -m data_pipeline.sample --help)\n")


def test_a_command_gets_its_configuration_and_its_user_errors_are_one_line(
    presets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []
    run_command(seen.append, Config, presets=presets, argv=["--config", "small"])
    assert seen == [Config(1, False, Inner(0.25))]

    def refuse(config: Config) -> None:
        raise UserError("There is\nno disk: buy one.")

    with pytest.raises(SystemExit) as ended:
        run_command(refuse, Config, argv=[])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: There is no disk: buy one.\n"


def test_a_command_that_is_interrupted_says_how_to_go_on_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command(interrupted, Config, argv=[])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nstopped; give the same command again to go on\n"
