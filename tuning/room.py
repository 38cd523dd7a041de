"""How many training runs a cluster holds at once, so that their workers never wait for one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_pipeline.errors import UserError
from urg.config import EngineConfig

Resources = Mapping[str, float]


def worker_need(engine: EngineConfig) -> dict[str, float]:
    """What one worker takes."""
    return {"CPU": float(engine.cpus_per_worker)} | ({"GPU": 1.0} if engine.use_gpu else {})


def runs_at_once(nodes: Sequence[Resources], engine: EngineConfig, wanted: int | None, grows: bool = False) -> int:
    """Runs for which the nodes have room, whole workers on each; no more than `wanted`. Drivers of runs take no CPU.

    grows: the nodes are a cluster's, which may add others, also where there is only a head now. There a `wanted` number
    holds as it is. Raises UserError, with what is needed and what there is, where not even one has room.
    """
    if wanted is not None and (grows or len(nodes) > 1):
        return wanted
    need, workers = worker_need(engine), engine.workers
    slots = sum(min(int(node.get(name, 0) // amount) for name, amount in need.items()) for node in nodes)
    if slots < workers:
        there = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in need) for node in nodes)
        per_worker = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
        raise UserError(
            f"one trial needs {workers} worker{'s' * (workers > 1)} of {per_worker} each, and there is room for "
            f"{slots} (nodes: {there or 'none'}): lower engine.workers or engine.cpus_per_worker by `overrides`, start "
            "on a larger cluster, or give --concurrency on one that grows."
        )
    return min(slots // workers, wanted or slots)
