"""Machines at the spot price while there are any, otherwise at the full one: `provider.module` of cluster.yaml.

Ray takes the next node type only after one that was allocated did not start in time. Where the cloud refuses a spot
machine at once, as it does when it has none, Ray 2.60 asks for the same again for ever
(ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor heeds ALLOCATION_TIMEOUT alone). So there is one
node type, and the second choice is made here, where the machine is asked for.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler.node_provider import NodeProvider

ONLY_SPOT = ("provisioningModel", "instanceTerminationAction", "preemptible")
"""What makes a spot machine in Google Cloud's `scheduling`. On AWS it is InstanceMarketOptions as a whole."""
logger = logging.getLogger(__name__)


def at_full_price(config: dict[str, Any]) -> dict[str, Any]:
    """The same machine without the settings that make it a spot one; equal to `config` where it is none."""
    plain = {key: value for key, value in config.items() if key != "InstanceMarketOptions"}
    if "scheduling" in plain:
        plain["scheduling"] = {key: value for key, value in plain["scheduling"].items() if key not in ONLY_SPOT}
    return plain


class SpotFirst(NodeProvider):
    """Put before one of Ray's providers: each machine is asked for at the spot price, then at the full one."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """The machines made, by their ids. One by one: of several, a cloud may refuse only some. Raises what the
        cloud's own provider raises where a machine is not to be had at any price."""
        made: dict[str, Any] = {}
        plain = at_full_price(node_config)
        for _ in range(count):
            if node_config != plain:
                try:
                    made.update(super().create_node(node_config, tags, 1) or {})
                    continue
                except Exception as refusal:
                    logger.warning("no spot machine, so one at the full price: %s", refusal)
                    node_config = plain
            made.update(super().create_node(plain, tags, 1) or {})
        return made


def __getattr__(name: str) -> type[NodeProvider]:
    """The providers `AWS` and `GCP`: each needs its cloud's library, which only those have who use that cloud."""
    base: type[NodeProvider]
    if name == "AWS":
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider as base
    elif name == "GCP":
        from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider as base
    else:
        raise AttributeError(f"module {__name__} has no {name}")
    return type(name, (SpotFirst, base), {})
