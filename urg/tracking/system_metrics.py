"""What this process and its machine use; MLflow's UI shows names that begin with `system/` under "System metrics".

Not MLflow's own SystemMetricsMonitor: that one asks the server at every sample and ends for good at the first failure.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

MEGABYTE = 1e6


def sample() -> dict[str, float]:
    """CPU and memory of the machine (%), resident memory of this process and memory of each CUDA device in use (MB).

    CPU is the mean since the last call in this process (the first call gives 0).
    """
    import psutil

    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(interval=None),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
    }
    return values | _cuda_memory()


def _cuda_memory() -> dict[str, float]:
    torch = sys.modules.get("torch")  # asking must neither load torch nor make a CUDA context
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    values = {}
    for i in range(torch.cuda.device_count()):
        values[f"system/gpu_{i}_memory_allocated_megabytes"] = torch.cuda.memory_allocated(i) / MEGABYTE
        values[f"system/gpu_{i}_memory_peak_megabytes"] = torch.cuda.max_memory_allocated(i) / MEGABYTE
    return values


def start_sampling(log: Callable[[dict[str, float]], None], interval: float, stop: threading.Event) -> threading.Thread:
    """A daemon thread that gives `log` a sample every `interval` seconds until `stop` is set."""

    def work() -> None:
        sample()
        while not stop.wait(interval):
            log(sample())

    thread = threading.Thread(target=work, name="system-metrics", daemon=True)
    thread.start()
    return thread
