"""What may be sent to a tracking server: names, numbers and texts that it takes, and no secret. Pure functions."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass

NAME_LIMIT = 250
"""Characters of a metric's, param's or tag's name (MLflow's MAX_ENTITY_KEY_LENGTH)."""
PARAM_LIMIT = 6000
"""Characters of a param's value (MLflow's MAX_PARAM_VAL_LENGTH)."""
TAG_LIMIT = 5000
"""Characters of a tag's value that every MLflow store takes."""

_SECRET_NAME = re.compile(
    r"(?:^|[._\-])(?:password|passwd|pwd|secret|secret_?key|token|auth_?token|access_?token|api_?key|access_?key|credentials?)$",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s'\"]*@")  # greedy up to the last @: a password may hold one, or a colon
_URL_SECRET = re.compile(
    r"(?i)([?&;](?:password|passwd|pwd|token|access_token|secret|api_?key|sig|signature|x-amz-[\w-]+)=)[^&\s'\"]+"
)

# SQLAlchemy, which reads the uris of databases, takes any character but @ for one of a password, / too; a port is none.
_LOGIN = re.compile(r"(?:https?://[^/?#]*@|[\w+.-]+://[^:/@]*:(?!\d+/)[^@]*@)", re.IGNORECASE)


def has_login(uri: str) -> bool:
    """Whether a tracking uri holds what nobody else may read: a server's user, a database's password, a secret query
    value. A database's user alone is none."""
    return bool(_LOGIN.match(uri) or _URL_SECRET.search(uri))


def redact(text: str) -> str:
    """`text` with `***` for the login part and the secret query values of every URL in it."""
    return _URL_SECRET.sub(r"\1***", _URL_LOGIN.sub("***@", text))


def clean_text(name: str, value: object, limit: int) -> str:
    """`value` as a text of at most `limit` characters, without secrets; a longer one is cut and says by how much."""
    if _SECRET_NAME.search(name) and value not in (None, ""):
        return "***"
    text = redact(str(value))
    if len(text) <= limit:
        return text
    note = f" … [cut: {len(text)} characters]"
    return text[: limit - len(note)] + note


def clean_name(name: str) -> str:
    """`name` in the characters that MLflow allows: `@` becomes `_at_`; any other change adds a hash of it.

    Raises ValueError for an empty name.
    """
    if not name:
        raise ValueError("A metric, param or tag has an empty name: give it one.")
    raw = name.replace("@", "_at_")
    parts = [part for part in re.sub(r"[^\w.\- /]", "_", raw, flags=re.ASCII).split("/") if part.strip(". ")]
    clean = "/".join(parts)
    if clean == raw and len(clean) <= NAME_LIMIT:
        return clean
    return f"{clean[: NAME_LIMIT - 9]}_{zlib.crc32(name.encode()):08x}"


def clean_number(name: str, value: object) -> float:
    """`value` (a number, a NumPy scalar, a tensor of one element) as a float; infinite becomes NaN.

    MLflow's databases keep NaN, but turn infinity into 1.8e308, which flattens every chart it is on.
    Raises TypeError, naming the metric, for what is no number.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"The metric {name!r} is {value!r}, of type {type(value).__name__}: give one number.") from None
    return math.nan if math.isinf(number) else number


def flatten(values: Mapping[str, object] | object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested mappings and dataclasses by dotted key: {"loss": {"tau": 1}} gives ("loss.tau", 1)."""
    if is_dataclass(values) and not isinstance(values, type):
        values = asdict(values)
    if isinstance(values, Mapping) and (values or not prefix):
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
