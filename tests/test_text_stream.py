"""Streamed text equals the definition of it, read naively, and never has to be taken back."""

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxcoder.text_stream import TextStream
from jaxcoder.tokenizer import Tokenizer

# Whole characters of 1 to 4 bytes, then bytes that are wrong alone: stray, truncated, overlong,
# half of a surrogate pair, past U+10FFFF.
FRAGMENTS = [
    *(character.encode() for character in "aab\n é€日🙂\x00"),
    *(
        b"\x80",
        b"\xff",
        b"\xc0",
        b"\xe2\x82",
        b"\xf0\x9f\x99",
        b"\xe0\x80",
        b"\xed\xa0",
        b"\xf4\x90",
    ),
]


def defined_text(tokens: Sequence[bytes], stop: Sequence[str]) -> tuple[str, int | None]:
    """The completion's text, and the first token after which a stop string is in it."""
    for count in range(1, len(tokens) + 2):
        raw = b"".join(tokens[:count])
        last = count > len(tokens)
        text = raw.decode("utf-8", "replace") if last else without_unfinished(raw)
        starts = [text.find(string) for string in stop if string in text]
        if starts:
            return text[: min(starts)], None if last else count - 1
    return text, None


def without_unfinished(raw: bytes) -> str:
    """The text of `raw` up to a last character that more bytes could complete.

    Python waits for the third byte of half a surrogate pair too, before it replaces all three.
    """
    for cut in range(max(0, len(raw) - 3), len(raw)):
        # The end can go on if some continuation makes all of it one character.
        for first, more in itertools.product((b"\x80", b"\x90", b"\xa0"), range(3)):
            filler = first + more * b"\x80"
            try:
                if len((raw[cut:] + filler).decode("utf-8", "surrogatepass")) == 1:
                    return raw[:cut].decode("utf-8", "replace")
            except UnicodeDecodeError:
                continue
    return raw.decode("utf-8", "replace")


def split_at_random(rng: random.Random, raw: bytes) -> list[bytes]:
    cuts = sorted(rng.choices(range(len(raw) + 1), k=rng.randrange(0, 12)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def random_stops(rng: random.Random, text: str) -> list[str]:
    """Mostly pieces of the text, some overlapping or changed at the end so as not to match."""
    stops = []
    for _ in range(rng.randrange(0, 4)):
        start = rng.randrange(0, len(text) + 1)
        string = text[start : start + rng.randrange(1, 7)]
        if rng.random() < 0.5:
            string += rng.choice("abé\ufffd")
        stops.append(string or "a")
    return stops


def test_stream_equals_definition_on_random_bytes_tokens_and_stops() -> None:
    """Stops split over tokens and bytes, overlapping, unmatched, in replaced bytes; 4,000 cases."""
    rng = random.Random(0)
    outcomes = set()
    for _ in range(4000):
        raw = b"".join(rng.choices(FRAGMENTS, k=rng.randrange(0, 25)))
        tokens = split_at_random(rng, raw)
        stop = random_stops(rng, raw.decode("utf-8", "replace"))
        expected, expected_token = defined_text(tokens, stop)
        stream = TextStream(tokens.__getitem__, stop)
        pieces, stopped_at = [], None
        for token in range(len(tokens)):
            pieces.append(stream.push(token))
            assert expected.startswith("".join(pieces)), (tokens, stop)
            assert stream.text == "".join(pieces)
            if stream.stopped and stopped_at is None:
                stopped_at = token
        pieces.append(stream.finish())
        assert "".join(pieces) == stream.text == expected, (tokens, stop)
        assert stopped_at == expected_token, (tokens, stop)
        outcomes.add((stream.stopped, stopped_at is None))
    # Never stopped; stopped by a token; stopped by the flush at the end.
    assert outcomes == {(False, True), (True, False), (True, True)}


def test_nothing_is_held_back_without_a_reason() -> None:
    """A stream that gave everything in `finish` would pass the test above."""
    tokens = [
        b"def f",
        b"():\n",
        b"  \xe2",
        b"\x82",
        b"\xac\ncl",
        b"assy",
        b"\ncla",
        b"ss X",
        b"more",
    ]
    stream = TextStream(tokens.__getitem__, ["\nclass "])
    pieces = [stream.push(token) for token in range(len(tokens))]
    assert pieces == ["def f", "():", "\n  ", "", "€", "\nclassy", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "def f():\n  €\nclassy"


def test_earliest_start_wins_when_one_token_completes_two_stops() -> None:
    stream = TextStream([b"xabc", b"d"].__getitem__, ["bc", "xabc", "cd"])
    assert stream.push(0) == ""
    assert stream.stopped
    # A shorter stop that ends first cuts first, though a longer one would begin before it.
    stream = TextStream([b"xab", b"cd"].__getitem__, ["b", "xabc"])
    assert stream.push(0) == "xa"
    assert stream.stopped


def test_unfinished_character_ends_as_a_replacement_which_may_be_a_stop() -> None:
    stream = TextStream([b"a\xf0\x9f"].__getitem__, [])
    assert (stream.push(0), stream.finish()) == ("a", "\ufffd")
    stream = TextStream([b"a\xf0\x9f"].__getitem__, ["\ufffd"])
    assert (stream.push(0), stream.stopped) == ("a", False)
    assert (stream.finish(), stream.stopped, stream.text) == ("", True, "a")


def test_work_is_linear_for_a_stop_string_that_almost_matches() -> None:
    """The held-back text grows to 200,000 characters: ten times the text, ten times the work.

    A stream that copies or rescans it at every token takes 30 times; the factor of two is noise.
    """

    def seconds(length: int) -> float:
        stream = TextStream(lambda token: b"a", ["a" * length + "b", "b" + "a" * length])
        begin = time.process_time()
        for token in range(length):
            assert stream.push(token) == ""
        assert stream.finish() == "a" * length
        return time.process_time() - begin

    short, long = (min(seconds(length) for _ in range(3)) for length in (20_000, 200_000))
    assert long < 2 * 10 * short


def test_agrees_with_tokenizer_decode_on_random_ids(shared_data: Path) -> None:
    """2,000 id sequences of StarCoder's tokenizer, most of them not UTF-8, special ids included."""
    tokenizer = Tokenizer.from_file(shared_data / "starcoder-tokenizer" / "tokenizer.json")
    rng = random.Random(1)
    replaced = 0
    for _ in range(2000):
        # Ids below 261 are special tokens and single bytes.
        ids = [rng.randrange(rng.choice((261, 49152))) for _ in range(rng.randrange(0, 20))]
        stream = TextStream(tokenizer.token_bytes, [])
        text = "".join(map(stream.push, ids)) + stream.finish()
        assert text == stream.text == tokenizer.decode(ids)
        replaced += "\ufffd" in text
    assert replaced > 500


@pytest.mark.parametrize("stop", [[], ["\n"]])
def test_a_stream_of_nothing_is_empty(stop: list[str]) -> None:
    stream = TextStream([b""].__getitem__, stop)
    assert (stream.text, stream.push(0), stream.finish(), stream.stopped) == ("", "", "", False)
