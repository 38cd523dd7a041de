"""A real Ray cluster of several nodes on this machine, to rehearse on: `python -m cluster.local --nodes 3`.

Without --run it stays until Ctrl-C and says how to use it; with --run it ends with the command, and with its exit code.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import UserError, exit_code_of

if TYPE_CHECKING:
    from cluster.local_cluster import LocalCluster


def main(argv: Sequence[str] | None = None) -> int:
    """Start the cluster that the command line describes and stay with it; returns the exit code."""
    from cluster.local_cluster import LocalCluster

    options = parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"starting {options.nodes} nodes …", flush=True)
    try:
        with LocalCluster(options.nodes, cpus=options.cpus, gpus=options.gpus, isolate=options.isolate) as cluster:
            print(described(cluster), flush=True)
            return run(options.run, cluster) if options.run else stay(cluster)
    except KeyboardInterrupt:
        print("ended: all nodes are down.", flush=True)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line. Exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="cluster.local", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes, the head included (default: 3)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of each node (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs that each node claims to have (default: 0)")
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="a network namespace for each node but the head, so that it can be cut off (root only)",
    )
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="COMMAND …", help="run this in it, then end it")
    options = parser.parse_args(argv)
    if options.nodes < 1:
        parser.error(f"--nodes {options.nodes}: a cluster needs at least 1 node")
    if options.cpus < 0 or options.gpus < 0:
        parser.error("--cpus and --gpus: give numbers from 0 on")
    if options.run == []:
        parser.error("--run: give the command to run, as in --run python -m urg.train --config sample")
    return options


def described(cluster: LocalCluster) -> str:
    """What the cluster is, and how to use it from another terminal."""
    settings = " ".join(f"{name}={value}" for name, value in cluster.environment().items())
    # A job runs in a copy of the checkout, without data and runs.
    folders = f"--data.shards {shlex.quote(str(Path('data/sample').absolute()))}"
    folders += f" --storage {shlex.quote(str(Path('runs').absolute()))}"
    nodes = ", ".join(node.address for node in (cluster.head, *cluster.workers))
    return (
        f"nodes      {nodes}\ndashboard  {cluster.dashboard} (it asks for the token in RAY_AUTH_TOKEN_PATH)\n"
        f"from another terminal:\n  export {settings}\n"
        "  python -m urg.train --config sample            # runs in it; so does any ray.init(address='auto')\n"
        f"  python -m cluster.submit train -- --config sample {folders}\n"
        "both train on what `python -m data_pipeline.prepare --config sample` makes. Ctrl-C ends it."
    )


def run(command: Sequence[str], cluster: LocalCluster) -> int:
    """Run `command` with the cluster in its environment; returns its exit code as a shell would give it."""
    try:
        child = subprocess.Popen(command, env=os.environ | cluster.environment())
    except OSError as error:
        raise UserError(f"--run {command[0]}: cannot be started ({error.strerror}).") from error
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    return code if code >= 0 else 128 - code


def stay(cluster: LocalCluster) -> int:
    """Watch the nodes until Ctrl-C; returns 1 when the head is gone."""
    told: set[str] = set()
    while cluster.head.process.poll() is None:
        for node in cluster.workers:
            if node.process.poll() is not None and node.address not in told:
                told.add(node.address)
                print(f"the node {node.address} has ended", flush=True)
        time.sleep(1)
    print("the head has ended, and with it the cluster", file=sys.stderr)
    return 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
