from __future__ import annotations

import pytest

from data_pipeline.labelling.progress import progress


def test_off_a_terminal_a_plain_line_every_tenth(capsys: pytest.CaptureFixture[str]):
    with progress("bleu", 100, "rows", done=35) as advance:
        for _ in range(65):
            advance(1)
    assert capsys.readouterr().out.splitlines() == [f"bleu: {done} of 100 rows" for done in range(40, 101, 10)]


def test_on_a_terminal_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with progress("bleu", 2, "rows") as advance:
        advance(2)
    assert "2/2" in capsys.readouterr().out


def test_nothing_to_do_divides_by_nothing():
    with progress("bleu", 0, "rows") as advance:
        advance(0)
