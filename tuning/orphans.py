"""What a run leaves in Ray when its processes are killed, as Tune kills those of a trial that it ends early.

Ray frees a placement group with its job. Where only the actor that made it dies, the CPUs stay taken: Ray Train starts
a helper to free them, PlacementGroupCleaner, which asks Ray's dashboard, and a local session has none. Two trials ended
early would block two CPUs for ever, and each leaves the helper's process. Ray's tables tell who made what, though only
by its internal names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

INTERVAL = 2.0
"""Seconds between two looks."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def orphans_freed() -> Iterator[None]:
    """Look for orphans again and again, in a thread, while the block lasts."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended,), name="orphans", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


def _watch(ended: threading.Event) -> None:
    while not ended.wait(INTERVAL):
        try:
            free_placement_groups()
            end_cleaners()
        except Exception as error:  # Ray's tables may be away for a moment; a sweep does not end for that
            _log.debug("Ray's tables could not be read (%s).", error)


def free_placement_groups() -> int:
    """Remove the placement groups of this job whose maker, an actor, is dead; how many."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # made at run time
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    job, freed = ray.get_runtime_context().get_job_id(), 0
    for stored in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(stored)
        by_actor = not ray.ActorID(group.creator_actor_id).is_nil()  # the driver's count as those of a dead one
        orphaned = by_actor and group.creator_actor_dead and not group.is_detached
        if orphaned and group.creator_job_id.hex() == job and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            freed += 1
    return freed


def end_cleaners() -> int:
    """End the helpers of this job, on this machine, whose controller is dead; how many."""
    import ray
    from ray._private.state import actors

    context = ray.get_runtime_context()
    ours = [a for a in actors().values() if a["JobID"] == context.get_job_id() and a["State"] == "ALIVE"]
    controllers = {_process(actor["Address"]) for actor in ours if actor["ActorClassName"] == "TrainController"}
    ended = 0
    for actor in ours:
        alone = (
            actor["ActorClassName"] == "PlacementGroupCleaner" and _process(actor["OwnerAddress"]) not in controllers
        )
        if alone and actor["Address"]["NodeID"] == context.get_node_id():
            with contextlib.suppress(ProcessLookupError):
                os.kill(actor["Pid"], signal.SIGTERM)
            ended += 1
    return ended


def _process(address: dict[str, object]) -> tuple[object, object]:
    return address["IPAddress"], address["Port"]
