from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.paths import absolute
from data_pipeline.sources import list_source


def test_a_path_is_shown_without_its_detours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "rows.jsonl").touch()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("../new/set") == tmp_path / "new" / "set"
    assert absolute("~/there") == tmp_path / "there"
    assert absolute("link/rows.jsonl") == tmp_path / "here" / "link" / "rows.jsonl"
    assert absolute("link/../here") == tmp_path / "here"  # the parent of what the link names, as for the system
    (file,) = list_source("../there/rows.jsonl")
    assert (file.name, file.path) == (str(tmp_path / "there" / "rows.jsonl"),) * 2
