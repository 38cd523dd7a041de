"""A network namespace for each node of a local cluster, so that a node can be cut off (Linux, as root).

The nodes hang on a bridge like machines on a switch; the first address is the bridge's own, for the head. The
addresses are of the block that is set aside for tests of networks (RFC 2544), which nobody routes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from cluster.errors import UserError

BLOCK = "198.18"
_PREFIX = "urgnet"  # of every name: with a process id and a number it fits the 15 characters of an interface's name
_CABLE = "uv"


class Network:
    """A bridge of this process with its namespaces; `close` removes them. Raises UserError where that is not allowed.

    host: the address of this machine on the bridge. interface: the bridge's name.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise UserError(
                "network namespaces need root and the command `ip` (package iproute2): go without --isolate."
            )
        _remove_those_of_dead_processes()
        self.interface = f"{_PREFIX}{os.getpid()}"
        self._subnet = _free_subnet()
        self._spaces: dict[str, str] = {}  # by address
        try:
            _ip("link", "add", self.interface, "type", "bridge")
            _ip("addr", "add", f"{self.host}/24", "dev", self.interface)
            _ip("link", "set", self.interface, "up")
        except UserError:
            self.close()
            raise

    @property
    def host(self) -> str:
        """The bridge's own address."""
        return f"{BLOCK}.{self._subnet}.1"

    def add(self) -> str:
        """A new namespace, connected; returns its address."""
        number = len(self._spaces) + 2
        address, space = f"{BLOCK}.{self._subnet}.{number}", f"{self.interface}-{number}"
        self._spaces[address] = space
        _ip("netns", "add", space)
        _ip("link", "add", _cable(space), "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", _cable(space), "master", self.interface, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        return address

    def command(self, address: str) -> list[str]:
        """What to put before a command so that it runs in the namespace of `address`."""
        return ["ip", "netns", "exec", self._spaces[address]]

    def cut_off(self, address: str) -> None:
        """From now on no packet of this namespace arrives, nor does one reach it; connections stay open, silent."""
        _ip("link", "set", _cable(self._spaces[address]), "nomaster")

    def reconnect(self, address: str) -> None:
        """Undo `cut_off`."""
        _ip("link", "set", _cable(self._spaces[address]), "master", self.interface)

    def close(self) -> None:
        """Remove the namespaces and the bridge."""
        for space in self._spaces.values():
            _ip("link", "del", _cable(space), check=False)  # unsent packets can keep a namespace for minutes
            _ip("netns", "del", space, check=False)
        _ip("link", "del", self.interface, check=False)
        self._spaces.clear()


def _cable(space: str) -> str:
    """The end of a namespace's cable that is on our side."""
    owner, number = space.removeprefix(_PREFIX).split("-")
    return f"{_CABLE}{owner}n{number}"


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise UserError(f"`ip {' '.join(arguments)}` failed ({reason}): go without --isolate.")
    return done.stdout


def _free_subnet() -> int:
    """The third number of a /24 that no interface of this machine has."""
    taken = {int(n) for n in re.findall(rf"inet {re.escape(BLOCK)}\.(\d+)\.", _ip("-o", "-4", "addr"))}
    return next(n for n in range(1, 255) if n not in taken)


def _remove_those_of_dead_processes() -> None:
    """A process that was killed could not remove its own."""
    for space in re.findall(rf"^{_PREFIX}\d+-\d+", _ip("netns", "list"), re.M):
        if not _alive(space.removeprefix(_PREFIX).split("-")[0]):
            _ip("netns", "del", space, check=False)
    for interface, owner in re.findall(rf": ((?:{_PREFIX}|{_CABLE})(\d+)(?:n\d+)?)[:@]", _ip("-o", "link")):
        if not _alive(owner):
            _ip("link", "del", interface, check=False)


def _alive(pid: str) -> bool:
    return Path("/proc", pid).exists()
