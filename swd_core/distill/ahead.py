"""Something made in a thread while what was made before it is used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
END = object()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made while the one before it is used.

    What goes wrong in making one is raised where that one is asked for.
    """
    with ThreadPoolExecutor(1, "swd ahead") as thread:
        coming = thread.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = thread.submit(next, items, END)
            yield item
