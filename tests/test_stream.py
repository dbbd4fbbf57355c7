"""`Generator.stream` gives the text of `Generator.generate` in pieces, whatever splits where."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import jaxcoder.row_decoder as row_decoder
from jaxcoder import Generator
from jaxcoder.generate import Chunk

pytest_plugins = ["tiny_checkpoint"]

PROMPTS = (
    "def f(x):",
    "😀",
    "naïve 日本語 = '🙂'",
    "",
    "x = 1\n",
    "# 🏳️‍🌈 family 👩‍👩‍👧",
    "\r\n\t",
    "a",
)


class Case(NamedTuple):
    """One prompt with everything that decides its completion."""

    prompt: str
    temperature: float
    seed: int
    stop: tuple[str, ...] = ()

    def arguments(self) -> dict:
        return self._asdict() | {"max_new_tokens": 24}


def cases(count: int) -> Iterator[Case]:
    rng = random.Random(0)
    for number in range(count):
        prompt = rng.choice(PROMPTS) + (f" {number}" if number % 3 else "")
        yield Case(prompt, temperature=rng.choice((0.0, 0.7, 1.0, 1.5)), seed=number)


def with_stops(case: Case, text: str) -> Case:
    """Stops from the text itself, of one or several characters, and some that just do not come."""
    rng = random.Random(case.seed)
    stops = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(text)) if text else 0
        stops.append(text[start : start + rng.choice((1, 2, 3, 8))] or "never")
    almost = text[-3:] + "never"
    if case.seed % 5 == 0:
        stops = [almost]
    elif case.seed % 5 == 1:
        stops.append(almost)
    return case._replace(stop=tuple(stops))


def test_pieces_are_the_text_of_generate_for_200_prompts(generator: Generator) -> None:
    """Emoji split over tokens, stops split over tokens and characters; text is never taken back.

    The counts at the end say that the hard cases were among them.
    """
    emoji = split_stops = several_pieces = unstopped = 0
    for case in cases(200):
        free = generator.generate(**case.arguments())
        assert "".join(generator.stream(**case.arguments())) == free.text
        emoji += any(character > "\uffff" for character in free.text)

        case = with_stops(case, free.text)
        expected = generator.generate(**case.arguments())
        text = ""
        pieces = 0
        for piece in generator.stream(**case.arguments()):
            assert piece
            text += piece
            pieces += 1
            assert expected.text.startswith(text), case
        assert text == expected.text, case
        several_pieces += pieces > 1

        assert free.text.startswith(text)
        assert not any(stop in text for stop in case.stop)
        if expected.finish_reason == "stop":
            last = generator.tokenizer.token_bytes(expected.tokens[-1])
            split_stops += all(len(stop.encode()) > len(last) for stop in case.stop)
        else:
            unstopped += 1
            assert text == free.text
    assert emoji > 100
    assert split_stops > 20
    assert several_pieces > 20
    assert unstopped > 20


def test_one_stop_string_cuts_where_it_first_occurs(generator: Generator) -> None:
    """The same, said without the library: text up to the first occurrence, and nothing of it."""
    for case in cases(30):
        free = generator.generate(**case.arguments())
        if len(free.text) < 8:
            continue
        stop = free.text[5:7]
        case = case._replace(stop=(stop,))
        assert "".join(generator.stream(**case.arguments())) == free.text.split(stop)[0]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    """The chunks that the model has given since the test began."""
    real, chunks = row_decoder.generate_chunks, []

    def record(*arguments, **options) -> Iterator[Chunk]:
        for chunk in real(*arguments, **options):
            chunks.append(chunk)
            yield chunk

    monkeypatch.setattr(row_decoder, "generate_chunks", record)
    return chunks


def test_text_comes_while_the_model_still_writes(generator: Generator, given: list[Chunk]) -> None:
    """A stream that decoded everything before its first piece would pass the tests above."""
    stream = generator.stream([20], max_new_tokens=64, temperature=1.0, seed=1)
    assert not given
    first = next(stream)
    assert first
    assert len(given) == 2  # the empty one after prefill, then one of decoding
    assert (
        first + "".join(stream)
        == generator.generate([20], max_new_tokens=64, temperature=1.0, seed=1).text
    )
    assert len(given) > 4


def test_stopped_row_decodes_no_further(generator: Generator, given: list[Chunk]) -> None:
    """After the chunk in which a stop string is found there is no other."""
    text = generator.generate([20], max_new_tokens=64, temperature=1.0, seed=1).text
    given.clear()
    arguments = {"max_new_tokens": 64, "temperature": 1.0, "seed": 1, "stop": text[:2]}
    assert "".join(generator.stream([20], **arguments)) == ""
    assert len(given) == 2
    given.clear()
    assert generator.generate([20], **arguments).finish_reason == "stop"
    assert len(given) == 2


def test_stream_may_be_left_early(generator: Generator) -> None:
    """What it did leaves no trace in the next call."""
    arguments = {"max_new_tokens": 64, "temperature": 1.0, "seed": 1}
    expected = generator.generate([20], **arguments).text
    stream = generator.stream([20], **arguments)
    next(stream)
    stream.close()
    assert generator.generate([20], **arguments).text == expected


def test_bad_arguments_fail_at_the_call_and_not_at_the_first_piece(generator: Generator) -> None:
    """A generator function would wait with its checks until `next`."""
    with pytest.raises(ValueError, match="temperature is -1"):
        generator.stream("x", temperature=-1)
    with pytest.raises(ValueError, match="stream takes one prompt; pass a list"):
        generator.stream(["x", "y"])
    with pytest.raises(ValueError, match="300 new tokens exceed"):
        generator.stream("x", max_new_tokens=300)
