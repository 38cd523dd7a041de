import subprocess
import sys

import pytest

from data_pipeline.errors import UserError
from urg.tracking.journal import Journal, RunCard, find_card, is_held, read_cards


def events(n, start=0):
    return [{"op": "metric", "key": "loss", "step": step} for step in range(start, start + n)]


def read_all(journal):
    found = []
    while journal.pending:
        part, position = journal.read(7)
        found += part
        journal.advance(position)
    return found


def test_events_come_back_in_order_and_the_file_is_emptied(tmp_path):
    journal = Journal(tmp_path, "key")
    journal.append(events(20))
    journal.append(events(5, start=20))
    assert read_all(journal) == events(25)
    assert journal.path.stat().st_size == 0
    journal.append(events(3))
    assert read_all(journal) == events(3)
    journal.close()
    assert not journal.path.exists()


def test_what_was_read_but_not_advanced_is_read_again(tmp_path):
    journal = Journal(tmp_path, "key")
    journal.append(events(10))
    assert journal.read(4)[0] == journal.read(4)[0] == events(4)
    journal.close()
    assert journal.path.exists()


@pytest.mark.faults
def test_a_killed_process_loses_nothing(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from urg.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]), "key")
for step in range(10):
    journal.append([{"op": "metric", "key": "loss", "step": step}])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=240)
    assert killed.returncode == -9
    (left,) = tmp_path.glob("*.jsonl")
    with left.open("ab") as file:
        file.write(b'{"op": "metric", "ke')  # and one that was cut in the middle
    journal = Journal(tmp_path, "key")
    journal.append(events(1, start=10))
    assert read_all(journal) == events(11)
    assert not left.exists()


def test_a_file_in_use_and_one_of_another_run_are_left_alone(tmp_path):
    first, other = Journal(tmp_path, "key"), Journal(tmp_path, "else")
    first.append(events(2))
    other.append(events(3))
    other.close()
    second = Journal(tmp_path, "key")
    assert not second.pending
    assert read_all(first) == events(2)
    assert other.path.exists()


def test_a_spool_is_held_as_long_as_somebody_logs_to_it(tmp_path):
    assert not is_held(tmp_path / "none")
    journal = Journal(tmp_path, "a")
    assert is_held(tmp_path)
    assert is_held(tmp_path)  # to ask takes nothing away
    journal.append(events(1))
    journal.close()
    assert not is_held(tmp_path)  # what was left behind is nobody's
    assert list(tmp_path.glob("*.jsonl"))


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path, "key")
    journal.append(events(2))
    room = 5  # bytes that still fit

    class FullDisk:
        def __init__(self, file):
            self.file, self.room = file, room

        def fileno(self):
            return self.file.fileno()

        def write(self, data):
            written = self.file.write(data[: self.room])
            self.room = 0
            if not written:
                raise OSError(28, "No space left on device")
            return written

    real = journal._file
    monkeypatch.setattr(journal, "_file", FullDisk(real))
    with pytest.raises(OSError, match="No space"):
        journal.append(events(1, start=2))
    monkeypatch.setattr(journal, "_file", real)
    journal.append(events(1, start=3))
    assert read_all(journal) == events(2) + events(1, start=3)


def test_unwritable_spool_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/spool cannot be written"):
        Journal(tmp_path / "file" / "spool", "key")


def test_cards_are_found_by_either_id(tmp_path):
    card = RunCard(key="abc", experiment="e", run_name="r", start_time=5.0)
    card.write(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert read_cards(tmp_path) == [card]
    assert find_card(tmp_path, "pending-abc", "e", "r") == card
    known = RunCard(key="abc", experiment="e", run_name="r", start_time=5.0, run_id="server-id")
    known.write(tmp_path)
    assert find_card(tmp_path, "server-id", "e", "r") == known
    assert find_card(tmp_path, "pending-abc", "e", "r") == known
    assert find_card(tmp_path, None, "e", "r").key != "abc"
    assert find_card(tmp_path, "from-elsewhere", "e", "r").run_id == "from-elsewhere"
