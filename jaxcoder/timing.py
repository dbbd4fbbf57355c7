"""Seconds that XLA spent compiling, so that they can be told apart from running."""

import functools
import time

import jax

_compile_seconds = 0.0


def compile_seconds() -> float:
    """Seconds this process has spent tracing and compiling since the first call of this."""
    _listen()
    return _compile_seconds


@functools.cache
def _listen() -> None:
    def count(event: str, seconds: float, **_: object) -> None:
        global _compile_seconds
        if event.startswith("/jax/core/compile/"):
            _compile_seconds += seconds

    jax.monitoring.register_event_duration_secs_listener(count)


class Stopwatch:
    """Context manager that splits the time of its body into `compile` and `run` seconds."""

    def __enter__(self) -> "Stopwatch":
        self._start, self._compiled = time.perf_counter(), compile_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.compile = compile_seconds() - self._compiled
        self.run = max(0.0, time.perf_counter() - self._start - self.compile)
