"""Where the time of a completion is booked."""

import pytest

from jaxcoder import Generator

pytest_plugins = ["tiny_checkpoint"]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make every chunk take a second of a clock of its own: the first is prefill."""
    now = [0.0]

    def perf_counter() -> float:
        return now[0]

    import jaxcoder.row_decoder as row_decoder

    real = row_decoder.generate_chunks

    def slow(*args: object, **options: object):
        for seconds, chunk in zip([7.0, *[1.0] * 100], real(*args, **options), strict=False):
            now[0] += seconds
            yield chunk

    monkeypatch.setattr("jaxcoder.timing.time.perf_counter", perf_counter)
    monkeypatch.setattr(row_decoder, "generate_chunks", slow)
    monkeypatch.setattr("jaxcoder.timing.compile_seconds", lambda: 0.0)
    return now


def test_reading_the_prompt_is_prefill_and_the_rest_is_decode(
    generator: Generator, slept: list[float]
) -> None:
    """A swap of the two labels went unnoticed before."""
    timings = generator.generate([20, 21, 22], max_new_tokens=40).timings
    assert timings.prefill == 7.0
    assert timings.decode == 3.0  # 40 tokens are three chunks of 16
    assert timings.compile == 0.0
