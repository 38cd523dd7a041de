"""What is wrong with a command line or a config file, in the words of its user rather than of Python's types."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

# How types are called, by how jsonargparse prints them.
_TYPES = {
    r"<class 'float'>": "a number",
    r"<class 'int'>": "a whole number",
    r"<class 'str'>": "text",
    r"<class 'bool'>": "true or false",
    r"<class 'NoneType'>": "null",
    r"<class 'list'>|list\[[^\]]*\]": "a list",
    r"<class 'dict'>|dict\[[^\]]*\]": "{key: value, …}",
    r"<class '(?:\w+\.)*(\w+)'>": r"the settings of \1",
    r"typing\.Literal\[([^\]]*)\]": r"one of \1",
}
_UNION = r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: "
_NO_GROUP = r"""Parser key "([\w.]+)": Unable to load config ['"](.*?)['"](?: - .*)?"""
_WRONG = r'Parser key "([\w.]+)": Expected an? (.*?)\. Got value: (.*)'
_WITHIN = r"Problem with given class_path '[\w.]+': (.*)"
# A whole group of settings as jsonargparse prints it: keys and passwords may be in it.
_GROUP = r"\b(?:Namespace|NestedArg)\(.*"


def setting_names(config_class: type) -> Iterator[str]:
    """The dotted name of every setting of a dataclass, and of every group of settings."""
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield field.name
        for kind in (types[field.name], *typing.get_args(types[field.name])):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from (f"{field.name}.{name}" for name in setting_names(kind))


def explained(error: Exception, arguments: Sequence[str], known: Collection[str]) -> str:
    """The message of `error`, which parsing `arguments` raised, in one line. known: of `setting_names`.

    Of a group of settings only the one that is wrong is shown: keys and passwords may stand in the others.
    """
    chain = list(_causes(error))
    for each in chain:
        if isinstance(each, UserError):  # what a group within a Union refuses arrives wrapped
            return _one_line(each)
    text = _one_line(error)
    if text.startswith("unrecognized arguments: "):
        return text + _near_ones(re.findall(r"--([\w.-]+)", text), known)
    text = re.sub(_UNION, r"Expected a \1. Got value: ", text)
    within = [found[1] for each in chain if (found := re.fullmatch(_WITHIN, _one_line(each)))]
    if wrong := re.fullmatch(_WRONG, text):
        name, wanted, value = wrong[1], _plain(wrong[2]), wrong[3]
        if within and (inner := re.fullmatch(_WRONG, within[-1])):
            name, wanted, value = f"{name}.{inner[1]}", _plain(inner[2]), inner[3]
        elif within:
            return f"{_where(name, arguments)}{name}: {within[-1]}"
    elif group := re.fullmatch(_NO_GROUP, text):
        name, wanted, value = group[1], f"its settings one by one, as --{group[1]}.NAME VALUE", group[2]
    else:
        return _one_line(chain[-1]) if text.startswith("Expected a ") else text
    return f"{_where(name, arguments)}{name} is {value[:200]}; give {wanted}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    return re.sub(_GROUP, "…", " ".join(str(error).split()))


def _where(name: str, arguments: Sequence[str]) -> str:
    """The config files that a setting can come from, to stand before its name; "" where the command line has it."""
    return "" if _is_given(name, arguments) else "".join(f"--config {file}: " for file in _configs(arguments))


def _plain(types: str) -> str:
    """Types as jsonargparse prints them, one or several, in words."""
    called = []
    for each in re.split(r", (?![^\[]*\])", types):
        for printed, plain in _TYPES.items():
            each = re.sub(printed, plain, each)
        called.append(each)
    return " or ".join(called)


def _is_given(name: str, arguments: Sequence[str]) -> bool:
    """Whether the setting, or one within it, is on the command line itself."""
    flags = [argument.partition("=")[0] for argument in arguments]
    return any(flag == f"--{name}" or flag.startswith(f"--{name}.") for flag in flags)


def _configs(arguments: Sequence[str]) -> list[str]:
    """The config files of a command line."""
    after = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
    return after + [each.partition("=")[2] for each in arguments if each.startswith("--config=")]


def _near_ones(names: Sequence[str], known: Collection[str]) -> str:
    """A question about the settings that were perhaps meant; "" where none is near."""
    near = [f"--{found}" for name in names if name not in known and (found := _near(name, known))]
    return f"; did you mean {', '.join(near)}?" if near else ""


def _near(name: str, known: Collection[str]) -> str:
    """The setting whose name, or the last part of it, is most like `name`; "" where none is."""
    lasts = {each.rpartition(".")[2]: each for each in known}
    like = [*difflib.get_close_matches(name, known, 1, 0.75)]
    like += [lasts[last] for last in difflib.get_close_matches(name.rpartition(".")[2], lasts, 1, 0.75)]
    return like[0] if like else ""


def require_settings(name: str, known: Collection[str]) -> None:
    """Raise `UserError` for a config file that is not YAML of known settings: jsonargparse would not name the file."""
    import yaml

    try:
        values = yaml.safe_load(Path(name).read_bytes())
    except yaml.YAMLError as error:
        raise UserError(f"--config {name} is not YAML ({_yaml_problem(error)}).") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {name} holds no settings; write them as key: value, one a line.")
    for key in _unknown(values, known):
        raise UserError(f"--config {name} has {key}, which is no setting{_near_ones([key], known)}")


def _yaml_problem(error: Any) -> str:
    """What is wrong, and in which line or at which byte."""
    mark = getattr(error, "problem_mark", None)
    if mark:
        return f"line {mark.line + 1}: {error.problem}"
    return f"byte {error.position + 1}: {error.reason}" if hasattr(error, "reason") else " ".join(str(error).split())


def _unknown(values: Mapping[Any, Any], known: Collection[str], group: str = "") -> Iterator[str]:
    """The dotted names in a config that are no settings."""
    for key, value in values.items():
        name = f"{group}{key}"
        if name not in known:
            yield name
        elif isinstance(value, dict) and any(each.startswith(f"{name}.") for each in known):
            yield from _unknown(value, known, f"{name}.")
