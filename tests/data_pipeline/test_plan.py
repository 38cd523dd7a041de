from __future__ import annotations

from typing import Any

import pytest

from data_pipeline import plan


def test_a_pool_whose_actors_keep_dying_comes_to_an_end(monkeypatch: pytest.MonkeyPatch):
    import ray.data
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
    from ray.data.dataset import _warn_on_ray_remote_args

    own, asked = {"num_cpus", "num_gpus", "compute", "fn_constructor_args"}, dict[str, Any]()

    class Blocks:
        def map(self, *_: object, **settings: Any) -> Blocks:
            asked.update({name: value for name, value in settings.items() if name not in own})
            _warn_on_ray_remote_args(asked)  # an error unless the plan expects it
            raise InterruptedError

    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: Blocks())
    monkeypatch.setattr(plan, "require_room", lambda actors: None)
    with pytest.raises(InterruptedError):
        list(plan.on_actors([{}], dict, plan.Actors(1)))
    actor = ActorPoolMapOperator._apply_default_remote_args(asked, ray.data.DataContext.get_current())
    assert (actor["max_restarts"], actor["max_task_retries"]) == (3, 3)
