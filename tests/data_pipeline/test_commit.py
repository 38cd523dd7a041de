"""Output folders: what may be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.commit import locked, require_lasting
from data_pipeline.errors import UserError

FILES = Path("ray") / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"


def test_a_relative_path_in_a_job_is_no_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives a job a working directory, and deletes it after the job; tests/urg/training/test_job_submit.py is such
    a job."""
    (tmp_path / FILES).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / FILES)
    with pytest.raises(UserError, match=r"runs is in the working directory of this job, which Ray deletes"):
        require_lasting(Path("runs"))
    with pytest.raises(UserError, match="give an absolute path"), locked(Path("data").absolute()):
        pass
    assert list(Path().iterdir()) == []
    require_lasting(tmp_path / "runs")
    require_lasting(tmp_path / "working_dir_files" / "runs")
