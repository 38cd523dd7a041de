"""A prepared set without a Ray: the plans run in this process, one task after another."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from data_pipeline.config import PrepareConfig


def prepare_without_ray(config: PrepareConfig) -> Path:
    """The folder of the set that `prepare` makes; what it prints is left out."""
    from data_pipeline import plan, ray_session
    from data_pipeline.prepare import prepare

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(plan, "_in_order", lambda tasks, work: map(work, tasks))
        patch.setattr(ray_session, "ray_session", contextlib.nullcontext)
        return prepare(config)
