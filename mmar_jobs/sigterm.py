"""SIGTERM as a note for whoever looks, instead of the end of the process.

Not here: what is done about it, and when.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; outside of the main thread, which alone may ask, never."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
