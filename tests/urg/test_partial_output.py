"""Lines that a killed command goes on with: whole batches of whole lines, of the same source, of one process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from urg.partial_output import partial_output


@pytest.mark.parametrize(
    ("written", "kept"),
    [(b"", 0), (b"a", 0), (b"a\n", 0), (b"a\nb", 0), (b"a\nb\n", 2), (b"a\nb\nc\nd", 2), (b"a\nb\nc\nd\n", 4)],
)
def test_whole_batches_of_whole_lines_are_kept(tmp_path: Path, written: bytes, kept: int) -> None:
    output, part = tmp_path / "out", tmp_path / "out.part"
    with contextlib.suppress(KeyboardInterrupt), partial_output(output, {"of": 1}, batch=2) as (file, _):
        file.write(written)
        raise KeyboardInterrupt
    assert part.exists() == bool(written)
    with partial_output(output, {"of": 1}, batch=2) as (file, lines):
        assert lines == kept
        file.write(b"end\n")
    assert output.read_bytes() == b"".join(written.splitlines(keepends=True)[:kept]) + b"end\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_process_writes_an_output(tmp_path: Path) -> None:
    with partial_output(tmp_path / "out", {}, 1) as (file, _):
        file.write(b"mine\n")
        file.flush()
        with pytest.raises(UserError, match="another process writes"), partial_output(tmp_path / "out", {}, 1):
            pass
    assert (tmp_path / "out").read_bytes() == b"mine\n"
