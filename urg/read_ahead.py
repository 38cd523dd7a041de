"""Make the next thing while the last one is used: one thread, one thing ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item]) -> Generator[Item]:
    """The same items in the same order; another thread makes the next one while the caller has one.

    All of them are made by that one thread, so that what makes them needs no locks. What it raises is raised where its
    item would have come. The thread ends with the items, or when this is closed (`contextlib.closing`), which waits for
    the item in the making.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, source, end)
            yield item  # type: ignore[misc]
