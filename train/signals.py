"""SIGTERM, SIGINT and SIGHUP ask a run to save and end; a second SIGINT ends it at once."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self.name = ""

    def __bool__(self) -> bool:
        """Whether the run is to save and end after the step in progress."""
        return bool(self.name)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the signals into a request while the block runs; main thread only."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.name = signal.Signals(number).name

    before = {
        number: signal.signal(number, ask)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
