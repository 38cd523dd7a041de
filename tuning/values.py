"""Dotted keys of a configuration: their types, their values, and a configuration with some of them changed."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")


def read_file(name: str, presets: Path) -> dict[str, Any]:
    """The YAML of a preset or a file. Raises UserError where there is none."""
    import yaml

    path = presets / f"{name}.yaml"
    if not path.is_file() or Path(name).is_file():
        path = Path(name).expanduser()
    if not path.is_file():
        names = ", ".join(sorted(preset.stem for preset in presets.glob("*.yaml")))
        raise UserError(f"{name}: no such file or preset; give a YAML file, or one of {names}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no readable YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of settings.")
    return content


def build(config_class: type[Config], settings: Mapping[str, Any], values: Mapping[str, Any]) -> Config:
    """The configuration with nested `settings`, its defaults where they are silent, and `values` by dotted key on top.

    Raises UserError, naming key, value and mend, for what the class or its types do not take.
    """
    from jsonargparse import ArgumentError

    nested = _merged(settings, values)
    try:
        parser: ArgumentParser = _parser(config_class)  # type: ignore[arg-type]
        return config_class(**vars(parser.instantiate(parser.parse_object(nested))))
    except (ArgumentError, ValueError, UserError) as error:
        raise UserError(" ".join(str(error).split())) from error


def leaves(config_class: type) -> dict[str, type]:
    """Every dotted key of a configuration class and the type of its value; `object` where it is not a plain one."""
    found: dict[str, type] = {}
    hints = typing.get_type_hints(config_class)
    for name in (field.name for field in dataclasses.fields(config_class)):
        inner = hints[name]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            found |= {f"{name}.{key}": kind for key, kind in leaves(inner).items()}
        else:
            found[name] = _plain(inner)
    return found


def kind_of(known: Mapping[str, type], key: str) -> type:
    """The type of a key. Raises UserError, with the likeliest meant, for one that is not there."""
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1) or ["see `python -m urg.train --help`"]
        raise UserError(f"the space names {key}, which the training configuration does not have; nearest: {near[0]}.")
    return known[key]


def value_of(config: object, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def _plain(hint: Any) -> type:
    """`int` for int and for int | None, and so on."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return _plain(inner[0]) if len(inner) == 1 else object
    return hint if hint in (int, float, bool, str) else object


def _merged(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _merged(value, {}) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"{key}: {parent} is no group of settings.")
        inner[leaf] = value
    return nested


@functools.cache
def _parser(config_class: Any) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class)
    return parser
