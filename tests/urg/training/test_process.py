"""What a worker's process is set up with."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from urg.training.process import hidden


def test_a_hidden_package_is_not_there_until_the_block_ends_and_an_imported_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seldom_imported.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with hidden("seldom_imported"), pytest.raises(ImportError):
        import_module("seldom_imported")
    own = import_module("seldom_imported")
    with hidden("seldom_imported"):
        assert import_module("seldom_imported") is own
