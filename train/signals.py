"""SIGTERM, SIGINT and SIGHUP ask a run to save and end; a second SIGINT ends it at once."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal came where there was nothing to save.

    Like its parent no `Exception`: what libraries catch on the way must not swallow it.
    """


class StopRequest:
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self.name = ""
        self._is_immediate = False

    def __bool__(self) -> bool:
        """Whether the run is to save and end after the step in progress."""
        return bool(self.name)

    def ask(self, number: int) -> None:
        """Note that the signal `number` came.

        Raises:
          Stopped: in a block of `immediate`.
          KeyboardInterrupt: it is a second SIGINT.
        """
        is_second = bool(self)
        self.name = signal.Signals(number).name
        if self._is_immediate:
            self._is_immediate = False
            raise Stopped
        if is_second and number == signal.SIGINT:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise `Stopped` if a signal came: between computations of JAX.

        An exception in the middle of a compilation makes jax 0.10.2 crash when the process ends.
        """
        if self:
            raise Stopped

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """While the block runs, a signal ends it by `Stopped`; so does one that came before.

        Not for blocks in which JAX computes, see `check`.
        """
        self.check()
        self._is_immediate = True
        try:
            yield
        finally:
            self._is_immediate = False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the signals into a request while the block runs; main thread only.

    One that is ignored stays so: SIGHUP under nohup, SIGINT of a shell's background job.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        request.ask(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number in heeded:
            signal.signal(number, before[number] or signal.SIG_DFL)
