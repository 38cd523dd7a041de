"""The search space: dotted keys with ranges or choices, some only under conditions. Pure, but for Optuna's own types.

model.k: {low: 1, high: 6}
loss.rank_loss: {choices: [hinge, listnet]}
loss.gamma:
  - {low: 1, high: 10, when: {loss.rank_loss: hinge}}
  - {low: 0.3, high: 10, log: true, when: {loss.rank_loss: listnet}}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from optuna import Trial

Point = dict[str, Any]
"""A value for each dotted key that is active."""
_FIELDS = {"low", "high", "log", "step", "int", "choices", "when"}


@dataclass(frozen=True)
class Dimension:
    """One range or list of choices of a key."""

    name: str
    """What Optuna calls it: the key, and the condition where the key has several ranges."""
    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    integer: bool = False
    choices: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Key → values, all of which must hold for the dimension to be there."""

    def active(self, point: Mapping[str, Any]) -> bool:
        """Whether its condition holds in a point."""
        return all(point.get(key, _ABSENT) in values for key, values in self.when)

    def contains(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)) or self.low is None or self.high is None:
            return False
        if not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.integer else None)
        return step is None or math.isclose((value - self.low) / step, round((value - self.low) / step), abs_tol=1e-9)

    def values(self) -> list[Any]:
        """All its values. Raises UserError for a range without steps."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self.integer else None)
        if step is None or self.low is None or self.high is None:
            raise UserError(f"space {self.name}: a grid needs choices, or a step for the range.")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self._number(self.low + index * step) for index in range(count)]

    def corners(self) -> list[Any]:
        """What must be valid for all between to be."""
        return list(self.choices) if self.choices else [self._number(self.low or 0), self._number(self.high or 0)]

    def suggest(self, trial: Trial) -> Any:
        """A value from Optuna."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.low is None or self.high is None:
            raise RuntimeError(f"{self.name} has neither a range nor choices.")
        if self.integer:
            step = int(self.step or 1)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def _number(self, value: float) -> float | int:
        return round(value) if self.integer else float(f"{value:.12g}")


_ABSENT = object()


@dataclass(frozen=True)
class Space:
    """Dimensions in an order in which every condition is known when it is asked."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def parse(cls, space: Mapping[str, Any], kind_of: Callable[[str], type]) -> Space:
        """The space that YAML describes. kind_of: a key's type, which raises UserError for an unknown key.

        Raises UserError that names the key for whatever is wrong.
        """
        dimensions = []
        for key, given in space.items():
            kind = kind_of(key)
            ranges = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
            dimensions += [_dimension(key, one, kind, alone=len(ranges) == 1) for one in ranges]
        return cls(tuple(_ordered(dimensions)))

    @property
    def keys(self) -> list[str]:
        """Every key, once."""
        return list(dict.fromkeys(dimension.key for dimension in self.dimensions))

    def suggest(self, trial: Trial) -> Point:
        """Define by run: a value for each dimension whose condition holds."""
        return self._walk(lambda dimension: dimension.suggest(trial))

    def base_point(self, value_of: Callable[[str], Any]) -> Point:
        """The base's values by dimension name. Raises UserError where one of them lies outside."""
        names: Point = {}

        def choose(dimension: Dimension) -> Any:
            value = value_of(dimension.key)
            if not dimension.contains(value):
                raise UserError(
                    f"space {dimension.name} does not hold the base's own value {value!r}, which is tried first: "
                    "widen it, change the base by `overrides`, or set base_first to false."
                )
            names[dimension.name] = value
            return value

        self._walk(choose)
        return names

    def grid(self) -> list[Point]:
        """Every combination, by dimension name. Raises UserError for a range without steps."""
        return list(self._grid({}, {}, self.dimensions))

    def _walk(self, choose: Callable[[Dimension], Any]) -> Point:
        point: Point = {}
        for dimension in self.dimensions:
            if dimension.active(point) and dimension.key not in point:
                point[dimension.key] = choose(dimension)
        return point

    def _grid(self, point: Point, names: Point, rest: Sequence[Dimension]) -> Iterator[Point]:
        if not rest:
            yield names
            return
        first, after = rest[0], rest[1:]
        if not first.active(point) or first.key in point:
            yield from self._grid(point, names, after)
            return
        for value in first.values():
            yield from self._grid({**point, first.key: value}, {**names, first.name: value}, after)


def _dimension(key: str, given: Any, kind: type, alone: bool) -> Dimension:
    """One range, checked."""
    if not isinstance(given, Mapping):
        raise UserError(f"space {key}={given!r}: give {{low, high}} or {{choices}}.")
    unknown = sorted(set(given) - _FIELDS)
    if unknown:
        raise UserError(f"space {key} has the unknown part {unknown[0]!r}; there are {', '.join(sorted(_FIELDS))}.")
    when = tuple((str(other), _values(value)) for other, value in (given.get("when") or {}).items())
    condition = ", ".join(f"{other}={'|'.join(map(str, values))}" for other, values in when)
    name = key if alone else f"{key} [{condition}]"
    if "choices" in given:
        return Dimension(name, key, choices=_choices(key, given), when=when)
    integer = kind is int or bool(given.get("int"))
    low, high = (_number(key, given, part, integer) for part in ("low", "high"))
    step = _number(key, given, "step", integer) if given.get("step") is not None else None
    log = bool(given.get("log", False))
    _check_range(key, low, high, log, step)
    if not integer:
        low, high = float(low), float(high)
    return Dimension(name, key, low, high, log, step, integer, when=when)


def _check_range(key: str, low: float, high: float, log: bool, step: float | None) -> None:
    if low >= high:
        raise UserError(f"space {key}: low {low} must be less than high {high}.")
    if log and low <= 0:
        raise UserError(f"space {key}: a log range needs a low above 0, not {low}.")
    if step is not None and (log or step <= 0 or step > high - low):
        raise UserError(f"space {key}: step {step} must be positive, no more than the range, and without log.")


def _choices(key: str, given: Mapping[str, Any]) -> tuple[Any, ...]:
    choices = given["choices"]
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise UserError(f"space {key}: choices={choices!r} must be a list of values.")
    if {"low", "high"} & set(given):
        raise UserError(f"space {key}: give a range or choices, not both.")
    if any(not isinstance(choice, (str, int, float, bool, type(None))) for choice in choices):
        raise UserError(f"space {key}: choices must be plain values.")
    if len({repr(choice) for choice in choices}) < len(choices):
        raise UserError(f"space {key}: choices={choices!r} has a value twice.")
    return tuple(choices)


def _number(key: str, given: Mapping[str, Any], part: str, integer: bool) -> float:
    value = given.get(part)
    try:
        if isinstance(value, bool) or value is None:
            raise TypeError
        number = float(value)  # YAML 1.1 reads 1e-4 as a string
    except (TypeError, ValueError):
        raise UserError(f"space {key}: {part}={value!r} must be a number.") from None
    if not math.isfinite(number) or (integer and number != round(number)):
        raise UserError(f"space {key}: {part}={value!r} must be a {'whole' if integer else 'finite'} number.")
    return round(number) if integer else number


def _values(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def _ordered(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Conditions first. Raises UserError for a condition that can never hold, and for a circle."""
    _require_reachable(dimensions)
    ordered: list[Dimension] = []
    waiting = list(dimensions)
    while waiting:
        open_keys = {dimension.key for dimension in waiting}
        ready = [d for d in waiting if not any(other in open_keys for other, _ in d.when)]
        # all ranges of a key come together, so that nobody sees half of them
        ready = [d for d in ready if all(same in ready for same in waiting if same.key == d.key)]
        if not ready:
            raise UserError(f"space {waiting[0].name}: its conditions go in a circle.")
        ordered += ready
        waiting = [dimension for dimension in waiting if dimension not in ready]
    _require_exclusive(ordered)
    return ordered


def _require_reachable(dimensions: Sequence[Dimension]) -> None:
    """Raise UserError for a condition on a key that is not searched over, or on a value that it cannot take."""
    for dimension in dimensions:
        for other, values in dimension.when:
            named = [one for one in dimensions if one.key == other]
            if not named:
                raise UserError(f"space {dimension.name}: its condition names {other}, which the space does not have.")
            if lost := [value for value in values if not any(one.contains(value) for one in named)]:
                raise UserError(f"space {dimension.name}: {other} never is {lost[0]!r}, which its condition asks for.")


def _require_exclusive(dimensions: Sequence[Dimension]) -> None:
    """Raise UserError where two ranges of a key could both apply."""
    for one, other in itertools.combinations(dimensions, 2):
        if one.key == other.key:
            both = dict(one.when)
            apart = any(key in both and not set(both[key]) & set(values) for key, values in other.when)
            if not apart:
                raise UserError(f"space {one.key} has two ranges for the same case: give each a `when` of its own.")
