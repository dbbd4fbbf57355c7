"""Seconds that XLA spent compiling, so that they can be told apart from running."""

import functools
import time

import jax

# Spans of time in which something was traced or compiled, in order and apart from each other.
_compiling: list[tuple[float, float]] = []


def compile_seconds() -> float:
    """Seconds this process has spent tracing and compiling since the first call of this."""
    _listen()
    return sum(end - start for start, end in _compiling)


@functools.cache
def _listen() -> None:
    def add(event: str, duration_secs: float, **_: object) -> None:
        if not event.startswith("/jax/core/compile/"):
            return
        end = time.perf_counter()
        start = end - duration_secs
        # Tracing a function traces those that it calls, and JAX up to 0.7 reports each of them.
        while _compiling and _compiling[-1][1] > start:
            start = min(start, _compiling.pop()[0])
        _compiling.append((start, end))

    jax.monitoring.register_event_duration_secs_listener(add)


class Stopwatch:
    """Context manager that splits the time of its body into `compile` and `run` seconds."""

    def __enter__(self) -> "Stopwatch":
        self._start, self._compiled = time.perf_counter(), compile_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.compile = compile_seconds() - self._compiled
        self.run = max(0.0, time.perf_counter() - self._start - self.compile)
