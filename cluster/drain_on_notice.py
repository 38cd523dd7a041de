"""Tell Ray that this node will be taken away: `python -m cluster.drain_on_notice aws`, beside `ray start`.

The cloud says in its metadata that it will end a spot machine: AWS two minutes before, Google Cloud half a minute. Ray
does not look there. Told by `ray drain-node`, it gives the node no more work, and the trainings on it write a
checkpoint. On Kubernetes this is not needed: `ray start --block` drains the node on SIGTERM.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime

METADATA = "http://169.254.169.254"
"""Where both clouds have it."""
NOTICE_SECONDS = {"aws": 120.0, "gcp": 30.0}
"""How long before the end it is announced."""
LOOK_EVERY_S = 2.0
PART_FOR_THE_TRAINING = 0.75
"""Of the time that is left. At the deadline Ray Train ends the workers, which it can while the node is still there."""
RAY_ANSWERS_S = 15.0
"""How long `ray drain-node` may take, most of it for its imports, before it is tried again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Look for a notice until there is one and the node is drained; returns 0. Whatever hinders it is tried again."""
    parser = argparse.ArgumentParser(prog="cluster.drain_on_notice", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cloud", choices=NOTICE_SECONDS)
    parser.add_argument(
        "--metadata", default=METADATA, metavar="URL", help="the metadata service (default: %(default)s)"
    )
    parser.add_argument("--every", type=float, default=LOOK_EVERY_S, metavar="SECONDS", help="between two looks")
    options = parser.parse_args(argv)
    look = {"aws": seconds_left_on_aws, "gcp": seconds_left_on_gcp}[options.cloud]
    importlib.import_module("ray")  # takes seconds, which there are now and will not be then
    end = math.inf
    while True:
        left = look(options.metadata)
        if left is not None:
            # It may have been announced just after the look before. Google Cloud says the same at every look.
            end = min(end, time.monotonic() + left - options.every)
            if drain(end):
                return 0
        time.sleep(options.every)


def seconds_left_on_aws(metadata: str) -> float | None:
    """Until AWS takes the machine; None while it does not mean to, or does not answer."""
    # Version 2 of the service: each request shows a token, which is asked for by PUT.
    token = _answer(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    notice = token and _answer(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if not notice:
        return None
    try:
        end = datetime.fromisoformat(json.loads(notice)["time"])
        return (end - datetime.now(UTC)).total_seconds()
    except (ValueError, KeyError, TypeError):
        return NOTICE_SECONDS["aws"]


def seconds_left_on_gcp(metadata: str) -> float | None:
    """Until Google Cloud takes the machine; None while it does not mean to, or does not answer."""
    said = _answer(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return NOTICE_SECONDS["gcp"] if said == "TRUE" else None


def drain(end: float) -> bool:
    """Have Ray drain the node that this runs on, which is gone at `end` (of time.monotonic); whether it will."""
    try:
        node, address = own_node()
        command = ["ray", "drain-node", f"--address={address}", f"--node-id={node}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the cloud takes the machine away"]
        seconds = max(1, int((end - time.monotonic()) * PART_FOR_THE_TRAINING))
        _say(f"this machine will be taken away: draining node {node} within {seconds} s")
        command += [f"--deadline-remaining-seconds={seconds}"]
        return subprocess.run(command, timeout=RAY_ANSWERS_S).returncode == 0
    except Exception as error:  # Ray's own are of no common kind, and nobody starts this again
        _say(f"this machine will be taken away, and Ray cannot be told: {type(error).__name__}: {error}")
        return False


def own_node() -> tuple[str, str]:
    """(the id of the node that this runs on, the address of its cluster), as Ray knows them."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False)
        context = ray.get_runtime_context()
        return str(context.get_node_id()), str(context.gcs_address)
    finally:
        ray.shutdown()


def _say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def _answer(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The body; None where there is no such page, or nobody answers. No proxy has this machine's own."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(urllib.request.Request(url, headers=headers, method=method), timeout=2) as answer:
            return str(answer.read().decode()).strip()
    except (OSError, http.client.HTTPException):
        return None


if __name__ == "__main__":
    sys.exit(main())
