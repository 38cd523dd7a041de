"""Which of the paper's two URGs one of ours stands beside: that of its size. Their rows are one system here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SIZES = {"770M": 0.77e9, "3B": 3e9}
"""Parameters of the paper's URGs."""
_SYSTEMS = {"URG": "urg", "URG-rank": "urg_rank"}


def published_size(parameters: float) -> str:
    """The size of the paper's that is nearest as a ratio: "770M" or "3B"."""
    return min(SIZES, key=lambda size: abs(math.log(parameters / SIZES[size])))


def ours_beside(row: Mapping[str, Any], size: str) -> list[str]:
    """Our names of a row of published.yaml, where our URG is of this size: none of the other size's rows."""
    system, _, printed = row["name"].removesuffix(")").partition(" (")
    if system not in _SYSTEMS or printed not in SIZES:
        return list(row["ours"])
    return [_SYSTEMS[system]] if printed == size else []
