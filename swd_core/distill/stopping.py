"""Stopping a training politely: Ctrl-C and kill end the loop after the step, and it saves."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """A training was asked to stop, and does between two batches."""


def stop_if(asked: bool) -> None:
    """Raises Stopped."""
    if asked:
        raise Stopped


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGINT or SIGTERM has asked to stop."""
    asked = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda *_: asked.append(True)) for s in signals]
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
