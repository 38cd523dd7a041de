"""Starting Ray, or joining the one that is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray, quiet: the one that runs, the cluster that RAY_ADDRESS names, or a local one that ends with the block."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    try:
        yield
    finally:
        if started:
            ray.shutdown()
