"""Starting Ray, or joining the one that is there."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline.errors import UserError, first_line

_PATIENCE_S = 15.0
"""How long a cluster may take until it accepts a connection; Ray itself would try for minutes."""


def on_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster, which may be a head alone that has yet to ask for nodes. `local`, or
    nothing, is this machine as it stands."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray, quiet: the one that runs, the cluster that RAY_ADDRESS names, or a local one that ends with the block.

    Raises `UserError` where that cluster does not answer.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        _start(os.environ["RAY_ADDRESS"] if on_cluster() else "local")
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _start(address: str) -> None:
    """Join the cluster at `address`, or start a local one."""
    import ray

    try:
        _connect(address)
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        if address == "local":
            raise
        raise UserError(
            f"RAY_ADDRESS {address} does not answer ({first_line(error)[:200]}); start that cluster, or unset "
            "RAY_ADDRESS to run on this machine."
        ) from error


def _connect(address: str) -> None:
    """Raise OSError where nobody accepts a connection at host:port or ray://host:port; other addresses are Ray's."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d+)", address)
    end = time.monotonic() + _PATIENCE_S
    while found:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE_S).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(1)
