"""Ports for servers that start later: free, never given twice, and none that a connection could take meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster import ports


@pytest.fixture(autouse=True)
def anew() -> None:
    ports._untried.cache_clear()


def test_ports_are_free_and_given_once_and_not_of_the_systems_range() -> None:
    low, high = ports.systems_range()
    found = ports.free_ports(20) + ports.free_ports(20)
    assert len(set(found)) == 40
    assert all(port >= ports.FIRST and not low <= port <= high for port in found)
    for port in found:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.7", ""])
def test_a_port_on_which_any_address_listens_is_passed_over(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = ports.free_ports(2)
    order = iter([taken, free])
    monkeypatch.setattr(ports, "_untried", lambda: order)
    with socket.socket() as server:
        server.bind((address, taken))
        server.listen()
        assert ports.free_ports(1) == [free]


def test_the_systems_range_is_read_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_SYSTEMS_RANGE", tmp_path / "range")
    assert ports.systems_range() == (49_152, 65_535)
    (tmp_path / "range").write_text("1024\t65535\n")
    assert ports.systems_range() == (1024, 65_535)
    assert all(port >= ports.FIRST for port in ports.free_ports(3)), "then there are no others to take"
