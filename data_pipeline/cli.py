"""The command line that every module of the project shares: typed dataclasses, YAML, dotted overrides, clean errors.

A command is a frozen dataclass and a function that takes it:

    def main(config: PrepareConfig) -> None: ...

    if __name__ == "__main__":
        run_command(main, PrepareConfig, presets=PRESETS)

gives `--config FILE-or-preset`, a `--dotted.key VALUE` for each field, `--print_config`, and `--help` from the
docstrings. Unknown keys, bad values and `UserError`s end with one line on stderr and exit code 2.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, TypeVar

from data_pipeline.cli_errors import explained, require_settings, setting_names
from data_pipeline.errors import UserError

Config = TypeVar("Config")


def run_command(
    main: Callable[[Config], object],
    config_class: type[Config],
    *,
    presets: Path | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse `argv` (default: the process's) into a `config_class`, and call `main` with it.

    Exits with code 2 and one line on a `UserError`, with 130 and one on Ctrl-C.

    presets: a folder of YAML files; `--config NAME` then also takes the bare name of one of them.
    """
    config = parse_config(config_class, presets=presets, argv=argv, description=main.__doc__ or "")
    try:
        main(config)
    except UserError as error:
        _exit_with(error)
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def parse_config(
    config_class: type[Config],
    *,
    presets: Path | None = None,
    argv: Sequence[str] | None = None,
    description: str = "",
) -> Config:
    """The `config_class` that the command line describes. Exits with code 2 and one sentence where it is wrong."""
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=_program_name(), description=_summary(description), exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help=_config_help(presets))
    parser.add_class_arguments(config_class)
    arguments = _plain_flags(list(sys.argv[1:] if argv is None else argv), config_class)
    known = list(setting_names(config_class))
    try:
        arguments = _resolve_presets(arguments, presets, known)
        values = parser.parse_args(arguments)
        values.pop("config", None)
        return config_class(**vars(parser.instantiate(values)))
    except (ArgumentError, UserError, ValueError) as error:
        _exit_with(explained(error, arguments, known), hint=f"python -m {parser.prog} --help")


def _plain_flags(arguments: list[str], config_class: type) -> list[str]:
    """`--dry-run` or `--dry_run` alone mean `--dry_run=true`, for every top-level field that is a bool."""
    flags = {field.name for field in dataclasses.fields(config_class) if field.type in (bool, "bool")}
    plain = []
    for argument, following in pairwise([*arguments, "--"]):
        key, _, value = argument.partition("=")
        name = key.removeprefix("--").replace("-", "_")
        if not key.startswith("--") or name not in flags:
            plain.append(argument)
        elif value or not following.startswith("--"):
            plain.append(f"--{name}" + (f"={value}" if value else ""))
        else:
            plain.append(f"--{name}=true")
    return plain


def _exit_with(error: Exception | str, hint: str = "") -> NoReturn:
    """End the process with one line on stderr and code 2, as every command does for what the user can mend."""
    print(f"error: {' '.join(str(error).split())}" + (f" (see: {hint})" if hint else ""), file=sys.stderr)
    raise SystemExit(2) from None


def _program_name() -> str:
    """`urg.train` for a process that was started as `python -m urg.train`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if not spec or spec.name == "pytest.__main__":
        return Path(sys.argv[0]).stem
    return spec.name.removesuffix(".__main__")


def _summary(docstring: str) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join(docstring.split("\n\n")[0].split())


def _preset_names(presets: Path | None) -> list[str]:
    return sorted(path.stem for path in presets.glob("*.yaml")) if presets else []


def _config_help(presets: Path | None) -> str:
    names = _preset_names(presets)
    return "A YAML file" + (f", or one of the presets: {', '.join(names)}." if names else ".")


def _resolve_presets(arguments: list[str], presets: Path | None, known: Collection[str]) -> list[str]:
    """Replace `--config NAME` by the path of the preset of that name; a file of that name in the way goes first."""
    resolved = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            resolved[i + 1] = _config_path(arguments[i + 1], presets, known)
        elif argument.startswith("--config="):
            resolved[i] = "--config=" + _config_path(argument.removeprefix("--config="), presets, known)
    return resolved


def _config_path(name: str, presets: Path | None, known: Collection[str]) -> str:
    """The path of a preset or a file. Raises UserError where it is neither, or a file that holds what is no setting."""
    if presets and name in _preset_names(presets) and not Path(name).is_file():
        return str(presets / f"{name}.yaml")
    if not Path(name).is_file():
        raise UserError(f"--config {name}: no such file or preset; {_config_help(presets)}")
    require_settings(name, known)
    return name
