"""Let Ctrl-C end the step in hand, so that what it leaves can be saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def held_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C in a list, so that the step in hand ends whole; a second one is not held."""
    held, before = [], None

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        signal.signal(signal.SIGINT, before)

    with suppress(ValueError):  # raised outside the main thread, which alone receives signals
        before = signal.signal(signal.SIGINT, hold)
    try:
        yield held
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
