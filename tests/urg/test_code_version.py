"""Which commit is at work."""

from __future__ import annotations

import pytest

from cluster.runtime_environment import COMMIT
from urg.code_version import git_commit


def test_the_commit_is_that_which_was_sent_or_the_checkouts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT, raising=False)
    assert git_commit() not in ("", "0123456789ab+")
    monkeypatch.setenv(COMMIT, "0123456789ab+")  # a job has the files, and no .git
    assert git_commit() == "0123456789ab+"
