"""What is asked of a setting when it is made."""

from __future__ import annotations


def require(holds: bool, key: str, value: object, mend: str) -> None:
    """Raise ValueError, naming the setting, its value and the mend, where a condition does not hold."""
    if not holds:
        raise ValueError(f"{key}={value!r}: {mend}")


def is_gap(value: float | None) -> bool:
    """Whether a `k_gap` is one: null, or finite and not negative."""
    return value is None or 0 <= value < float("inf")
