"""Ports for servers that start a while after their port was chosen."""

from __future__ import annotations

import functools
import random
import socket
from collections.abc import Iterator
from pathlib import Path

FIRST = 20_000
"""Below are the ports that Ray's workers take where nothing else is said."""
_SYSTEMS_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at the moment; this process gets each of them once.

    They are not of the range from which the system serves every connection and every server that takes any port: of
    those, one may be gone by the time that Ray, seconds later, comes to listen on it, and then a part of it ends, and
    with that its node.
    """
    found: list[int] = []
    while len(found) < count:
        port = next(_untried())
        if _is_free(port):
            found.append(port)
    return found


@functools.cache
def _untried() -> Iterator[int]:
    """In random order, for other processes of this machine look for ports too."""
    low, high = systems_range()
    ports = [port for port in range(FIRST, 2**16) if not low <= port <= high] or list(range(FIRST, 2**16))
    return iter(random.SystemRandom().sample(ports, len(ports)))


def systems_range() -> tuple[int, int]:
    """The first and the last port that the system gives to whoever names none."""
    try:
        low, high = _SYSTEMS_RANGE.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 49_152, 65_535  # what IANA sets aside, and macOS takes


def _is_free(port: int) -> bool:
    """Whether no address of this machine has a listener there."""
    with socket.socket() as candidate:
        try:
            candidate.bind(("", port))
        except OSError:
            return False
    return True
