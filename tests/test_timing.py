"""Seconds of compiling are counted once and told apart from those of running."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxcoder import timing
from jaxcoder.timing import Stopwatch


@pytest.fixture
def let_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass on a clock that shows only those."""
    # Ahead of the real one, whose spans are on record already.
    now = time.perf_counter() + 1000.0

    def let_pass(seconds: float) -> None:
        nonlocal now
        now += seconds

    timing.compile_seconds()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(timing, "_compiling", [])
    return let_pass


def report(seconds: float, event: str = "/jax/core/compile/some_duration") -> None:
    """What JAX says at the end of a step of compiling."""
    jax.monitoring.record_event_duration_secs(event, seconds)


def test_steps_of_compiling_add_up_and_the_rest_is_running(let_pass) -> None:
    with Stopwatch() as watch:
        let_pass(2.0)
        report(2.0)
        let_pass(3.0)
        let_pass(4.0)
        report(4.0)
    assert watch.compile == pytest.approx(6.0)
    assert watch.run == pytest.approx(3.0)


def test_a_step_within_a_step_is_counted_once(let_pass) -> None:
    """JAX 0.7 reports the trace of each inner function too: more seconds than had passed."""
    with Stopwatch() as watch:
        let_pass(1.0)
        for _ in range(3):
            let_pass(1.0)
            report(1.0)
        report(3.5)
        report(2.0)
    assert watch.compile == pytest.approx(3.5)
    assert watch.run == pytest.approx(0.5)


def test_other_events_are_not_compiling(let_pass) -> None:
    with Stopwatch() as watch:
        let_pass(1.0)
        report(1.0, "/jax/some/other_duration")
    assert watch.compile == 0
    assert watch.run == pytest.approx(1.0)


def test_compiling_a_real_program_takes_no_longer_than_it_took() -> None:
    """A jitted function of jitted functions, which the second time compiles nothing."""

    def nested(x: jax.Array, depth: int) -> jax.Array:
        return jnp.sin(x) if depth == 0 else jax.jit(nested, static_argnums=1)(x + 1, depth - 1)

    x = jnp.ones(3)
    program = jax.jit(nested, static_argnums=1)
    begin = time.perf_counter()
    with Stopwatch() as watch:
        program(x, 20).block_until_ready()
    assert 0 < watch.compile < time.perf_counter() - begin
    assert watch.run > 0
    with Stopwatch() as watch:
        program(x, 20).block_until_ready()
    assert watch.compile == 0
