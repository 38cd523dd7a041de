"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real outputs of real models, in a folder beside the repository; a test that needs them is skipped without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "alpaca_eval.jsonl").is_file():
        pytest.skip(f"real data are not there: {folder}")
    return folder
