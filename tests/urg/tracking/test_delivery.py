import threading
import time

import pytest

from data_pipeline.errors import UserError
from urg.tracking.delivery import Sender
from urg.tracking.journal import Journal


class FakeServer:
    """A Destination in memory. `up` cleared: every call fails; `gate` cleared: `send` hangs until it is set."""

    name = "the fake"

    def __init__(self, up=True):
        self.up, self.gate, self.entered = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()
        if up:
            self.up.set()
        self.got, self.unstored, self.hopeless = [], [], False

    def connect(self):
        if not self.up.is_set():
            raise ConnectionError("connection refused")

    def send(self, events):
        self.entered.set()
        self.gate.wait()
        self.connect()
        self.got += events

    def explain(self, error):
        return str(error)

    def is_hopeless(self, error):
        return self.hopeless

    def retry_failed(self):
        pass

    def failed(self):
        return self.unstored


def point(step):
    return {"op": "metric", "key": "loss", "step": step}


def test_all_arrives_in_order(tmp_path):
    server = FakeServer()
    sender = Sender(Journal(tmp_path, "key"), server, 10)
    for step in range(2500):
        sender.add([point(step)])
    assert sender.close(20)
    assert server.got == [point(step) for step in range(2500)]
    assert not list(tmp_path.iterdir())


def test_add_returns_while_the_server_hangs(tmp_path):
    server = FakeServer()
    sender = Sender(Journal(tmp_path, "key"), server, 10)
    server.gate.clear()
    sender.add([point(0)])
    assert server.entered.wait(20)
    for step in range(1, 100):  # the thread is inside `send` all this time
        sender.add([point(step)])
    assert not sender.flush(0.01)
    assert not server.got
    server.gate.set()
    assert sender.close(20)
    assert server.got == [point(step) for step in range(100)]


def test_an_outage_is_told_once_and_loses_nothing(tmp_path, caplog):
    server = FakeServer(up=False)
    sender = Sender(Journal(tmp_path, "key"), server, 10)
    for step in range(3):
        sender.add([point(step)])
        assert not sender.flush(0.2)
    ours = [record.message for record in caplog.records if record.name == "urg.tracking.delivery"]
    assert [message.split(":")[0] for message in ours] == ["the fake does not answer (connection refused)"]
    server.up.set()
    assert sender.flush(20)
    assert sender.close(20)
    assert server.got == [point(step) for step in range(3)]


def test_what_is_left_at_close_goes_to_the_next_sender(tmp_path):
    away, back = FakeServer(up=False), FakeServer()
    away.unstored = [{"op": "artifact", "path": "/x", "folder": ""}]
    sender = Sender(Journal(tmp_path, "key"), away, 10)
    sender.add([point(0)])
    assert not sender.close(0.1)
    sender._thread.join(20)
    assert Sender(Journal(tmp_path, "key"), back, 10).close(20)
    assert back.got == [point(0), *away.unstored]


def test_a_hopeless_first_attempt_is_an_error(tmp_path):
    server = FakeServer(up=False)
    server.hopeless = True
    with pytest.raises(UserError, match=r"the fake cannot be used \(connection refused\)"):
        Sender(Journal(tmp_path, "key"), server, 10)


def test_what_has_worked_before_is_not_hopeless(tmp_path, caplog):
    server = FakeServer(up=False)
    server.hopeless = True
    sender = Sender(Journal(tmp_path, "key"), server, 10, trusted=True)
    sender.add([point(0)])
    assert sender._tried.wait(20)
    server.up.set()
    assert sender.close(20)
    assert server.got == [point(0)]
    assert "does not answer" in caplog.text


@pytest.mark.parametrize("trusted", [False, True])
def test_only_who_has_never_been_there_is_waited_for(tmp_path, trusted):
    """The first attempt hangs until the test lets it go on: a trusted sender is there before."""
    asked, gate = threading.Event(), threading.Event()

    class Silent(FakeServer):
        def connect(self):
            asked.set()
            gate.wait()

    begun = time.monotonic()
    sender = Sender(Journal(tmp_path, "key"), Silent(), 200 if trusted else 0.5, trusted=trusted)
    waited = time.monotonic() - begun
    assert waited < 100 if trusted else waited > 0.4
    sender.add([point(0)])
    assert asked.wait(20)
    assert not sender.close(0.1)
    gate.set()
    sender._thread.join(20)
    assert not sender._thread.is_alive()


def test_a_full_disk_does_not_raise(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path, "key")
    sender = Sender(journal, FakeServer(), 10)

    def full(events):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "append", full)
    sender.add([point(0)])
    sender.add([point(1)])
    assert sum("No space left" in record.message for record in caplog.records) == 1
    assert sender.close(20)
