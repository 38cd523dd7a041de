"""Ray's torch backend, in whose workers SIGTERM is a notice and not the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from urg.training.notices import heed_sigterm


@dataclass
class HeedingTorchConfig(TorchConfig):
    """As TorchConfig."""

    @property
    def backend_cls(self) -> Any:
        """What starts and ends the process group."""
        return _HeedingBackend


class _HeedingBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called once the workers run; `execute` reaches their main threads, the only ones that can take a signal."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(heed_sigterm)
