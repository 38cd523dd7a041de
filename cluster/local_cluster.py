"""Several real Ray nodes on this machine: each has its own raylet, address, ports, resources and session folder.

    with LocalCluster(nodes=3) as cluster:
        subprocess.run(["python", "-m", "urg.train", ...], env=os.environ | cluster.environment())
        cluster.kill(cluster.workers[0])

The nodes are started as on real machines, by `ray start`. (ray.cluster_utils.Cluster starts them inside this process,
which then can't put one into a network namespace, and leaves a note by which any `ray.init()` of the machine joins.)
The cluster asks for a token. Its dashboard is on loopback; Ray's other servers (the GCS, the raylets, their agents)
listen on every interface of the machine, whatever the node's address, and so do the metrics, which ask for no token.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.errors import UserError
from cluster.network import Network
from cluster.ports import free_ports
from cluster.processes import end, kill

OBJECT_STORE_BYTES = 150 * 2**20


@dataclasses.dataclass(eq=False)
class Node:
    """A running node: its address, the `ray start` that holds it, and where that writes."""

    address: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]


class LocalCluster:
    """A cluster that ends with the `with` block. Raises UserError where a node does not come up.

    nodes: how many, the head included. cpus, gpus: of each node (GPUs are only counted, not used). isolate: give each
    node but the head a network namespace, so that `cut_off` works (root only). environment: more variables for the
    nodes, such as RAY_health_check_period_ms. start_timeout: seconds for a node to come up.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        cpus: float = 1,
        gpus: float = 0,
        isolate: bool = False,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 120,
    ) -> None:
        if nodes < 1:
            raise UserError(f"a cluster needs at least 1 node, not {nodes}.")
        self._count, self._cpus, self._gpus = nodes, cpus, gpus
        self._isolate, self._more, self._timeout = isolate, dict(environment or {}), start_timeout
        self.head: Node
        self.workers: list[Node] = []

    def __enter__(self) -> LocalCluster:
        self._network = Network() if self._isolate else None
        # Not below TMPDIR: the path of a Unix socket has at most 107 characters, and Ray adds 70 of its own.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._token_file = self.folder / "token"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(secrets.token_hex(32))
        self._addresses = 0
        try:
            self._start_head()
            for _ in range(self._count - 1):
                self.workers.append(self._launch_worker(self._cpus, self._gpus, {}))
            self._wait_for(self.workers)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """What `ray.init(address=…)` and RAY_ADDRESS take."""
        return f"{self.head.address}:{self._gcs_port}"

    @property
    def dashboard(self) -> str:
        """The URL of the dashboard and of the Jobs API."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def environment(self) -> dict[str, str]:
        """The variables by which Ray's commands, `ray.init` and the Jobs API find this cluster and may enter."""
        login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token_file)}
        return {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard, **login}

    def add_node(
        self, *, cpus: float = 1, gpus: float = 0, resources: Mapping[str, float] | None = None, wait: bool = True
    ) -> Node:
        """Start one more node; with wait, return when the cluster has it."""
        node = self._launch_worker(cpus, gpus, resources or {})
        self.workers.append(node)
        if wait:
            self._wait_for([node])
        return node

    def kill(self, node: Node) -> None:
        """SIGKILL to every process of a node at once, as when a machine loses power."""
        kill(node.process)
        self.workers = [other for other in self.workers if other is not node]

    def restart_head(self) -> None:
        """Kill the head if it still runs, and start another at the same address. It knows nothing of before."""
        self._start_again(self.head)
        self._wait_for([self.head])

    def cut_off(self, node: Node) -> None:
        """No packet leaves or reaches the node any more, though its processes run on. Needs isolate=True."""
        self._own_network().cut_off(node.address)

    def reconnect(self, node: Node) -> None:
        """Undo `cut_off`."""
        self._own_network().reconnect(node.address)

    def alive(self) -> dict[str, str]:
        """The nodes that the head takes for alive: their ids by address."""
        return {node["node_ip"]: node["node_id"] for node in self._listed() if node["state"] == "ALIVE"}

    def close(self) -> None:
        """End all nodes by their process ids and remove their folders. Safe to call twice."""
        nodes = [*self.workers, *([self.head] if hasattr(self, "head") else [])]
        end([node.process for node in nodes])
        self.workers = []
        if self._network is not None:
            self._network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _own_network(self) -> Network:
        if self._network is None:
            raise UserError("a node can be cut off only in a cluster with network namespaces: give isolate=True.")
        return self._network

    def _start_head(self) -> None:
        # 127.0.0.1 would not do: Ray replaces it by an address that other machines can reach.
        address = self._network.host if self._network else self._next_loopback()
        self._gcs_port, self._dashboard_port, client = free_ports(3)
        command = ["--head", f"--port={self._gcs_port}", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={self._dashboard_port}", f"--ray-client-server-port={client}"]
        command += self._options(address, self._cpus, self._gpus, {})
        self.head = self._launch(
            address, command, self._node_environment(self._network.interface if self._network else "lo")
        )
        self._wait_for([self.head])

    def _launch_worker(self, cpus: float, gpus: float, resources: Mapping[str, float]) -> Node:
        address = self._network.add() if self._network else self._next_loopback()
        command = [f"--address={self.address}", *self._options(address, cpus, gpus, resources)]
        return self._launch(address, command, self._node_environment("eth0" if self._network else "lo"))

    def _launch(self, address: str, options: list[str], environment: dict[str, str]) -> Node:
        log = self.folder / f"{address}.log"
        where = self._network.command(address) if self._network and address != self._network.host else []
        # If this process is killed, its nodes get SIGTERM.
        bound = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        command = [*bound, *where, _ray(), "start", "--block", *options]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
        return Node(address, options, environment, log, process)

    def _start_again(self, node: Node) -> None:
        kill(node.process)
        (self.folder / node.address / "ray_current_cluster").unlink(missing_ok=True)  # Ray's note of the dead one
        node.process = self._launch(node.address, node.command, node.environment).process

    def _options(self, address: str, cpus: float, gpus: float, resources: Mapping[str, float]) -> list[str]:
        # Ray's defaults for these are fixed numbers, which another Ray of the machine may have.
        agent, agent_grpc, metrics, runtime_env = free_ports(4)
        options = [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
        options += [f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}"]
        options += ["--min-worker-port=0", "--max-worker-port=0", f"--node-ip-address={address}"]
        options += [f"--num-cpus={cpus:g}", f"--num-gpus={gpus:g}", f"--resources={json.dumps(dict(resources))}"]
        options += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        return [*options, f"--temp-dir={self.folder / address}"]

    def _node_environment(self, interface: str) -> dict[str, str]:
        """The environment of a node and of all workers on it. interface: by which gloo reaches the other nodes."""
        own = {
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        }
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
        own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token_file)}
        return own | {"GLOO_SOCKET_IFNAME": interface} | self._more

    def _next_loopback(self) -> str:
        self._addresses += 1
        return f"127.0.0.{self._addresses + 1}"

    def _wait_for(self, nodes: list[Node]) -> None:
        """Return when the head takes all of them for alive.

        One that ends on the way is started once more: Ray gives up a raylet that takes 30 seconds, as on a busy
        machine it may.
        """
        deadline, again = time.monotonic() + self._timeout, list(nodes)
        while missing := [node for node in nodes if node.address not in self.alive()]:
            for node in missing:
                ended = node.process.poll() is not None
                if time.monotonic() > deadline or (ended and node not in again):
                    raise UserError(f"the node {node.address} did not come up; its last words: {_last_words(node.log)}")
                if ended:
                    again.remove(node)
                    self._start_again(node)
            time.sleep(0.2)

    def _listed(self) -> list[dict[str, Any]]:
        """All nodes that the head has known; none while it does not answer."""
        request = urllib.request.Request(
            f"{self.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {self._token_file.read_text()}"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would be shown the token
        try:
            with direct.open(request, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
                return found
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _ray() -> str:
    """The `ray` command of this interpreter's environment."""
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else "ray"


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return " ".join(line.strip() for line in lines if line.strip())[-400:] or "none"
