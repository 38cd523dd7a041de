"""Reading ahead: the same items, one of them early, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from urg.read_ahead import read_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_come_as_they_are_made(count: int) -> None:
    assert list(read_ahead(iter(range(count)))) == list(range(count))
    assert list(read_ahead([None] * count)) == [None] * count
    assert not threads()


def test_the_next_item_is_made_by_one_other_thread_while_one_is_used() -> None:
    began = [threading.Event() for _ in range(5)]
    makers = set()

    def items() -> Iterator[int]:
        for i in range(4):
            began[i].set()
            makers.add(threading.get_ident())
            yield i
        began[4].set()

    for i in read_ahead(items()):
        assert began[i + 1].wait(10), "before it is asked for"
        assert not any(event.is_set() for event in began[i + 2 :]), "one ahead, and no more"
    assert len(makers) == 1
    assert threading.get_ident() not in makers


def test_an_error_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(ahead)
    assert not threads()


def test_whoever_stops_in_between_leaves_no_thread() -> None:
    with closing(read_ahead(range(100))) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        assert len(threads()) == 1
    assert not threads()
