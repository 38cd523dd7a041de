"""URG: rank the candidate answers of many language models with one decoder step, and fuse the best into one answer.

`import urg` is light. The heavy parts load on first use: `from urg import Ensemble`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.errors import UserError
    from urg.ensemble import Ensemble, Fused, Query, Ranking

__all__ = ["Ensemble", "Fused", "Query", "Ranking", "UserError"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from urg import ensemble

        return getattr(ensemble, name)
    raise AttributeError(f"module 'urg' has no attribute {name!r}")
