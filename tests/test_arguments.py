"""Every argument at, and just beyond, its bounds: an exact meaning, or one clear refusal.

The numbers at the start of the ids are those of a list of bad inputs that other tests use too.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcoder import Generator
from jaxcoder.arguments import check_stop
from jaxcoder.cache import init_cache
from jaxcoder.info import describe

pytest_plugins = ["tiny_checkpoint"]

NAN, INF = float("nan"), float("inf")
SOME = 8
"""New tokens of a call that must work."""

# (case, arguments of generate, a part of the message)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("43-lone-surrogate", {"prompt": "a\ud800b"}, "position 1: the lone surrogate"),
    ("43-bytes", {"prompt": b"abc"}, "prompt is bytes, expected str"),
    ("43-none", {"prompt": None}, "prompt is NoneType, expected str"),
    ("43-number", {"prompt": 5}, "prompt is int, expected str"),
    ("43-set", {"prompt": {"a"}}, "prompt is set, expected str"),
    ("43-dict", {"prompt": {"a": 1}}, "prompt is dict, expected str"),
    ("43-iterator", {"prompt": iter("abc")}, "prompt is str_.*iterator, expected str"),
    ("43-bytes-in-list", {"prompt": ["a", b"b"]}, "prompt is bytes, expected str"),
    ("43-none-in-list", {"prompt": ["a", None]}, "prompt is NoneType, expected str"),
    (
        "44-too-long",
        {"prompt": [20] * 257, "max_new_tokens": 0},
        r"257 prompt tokens \+ 0 new tokens exceed the model's 256 positions",
    ),
    (
        "44-too-many-new",
        {"prompt": [20] * 250, "max_new_tokens": 7},
        r"250 prompt tokens \+ 7 new tokens exceed the model's 256 positions",
    ),
    ("47-negative", {"prompt": [20, -1]}, "token -1 at position 1, expected ids from 0 to 287"),
    ("47-vocab-size", {"prompt": [288]}, "token 288 at position 0, expected ids from 0 to 287"),
    ("47-huge", {"prompt": [20, 2**70]}, f"token {2**70} at position 1"),
    ("47-huge-and-negative", {"prompt": [-1, 2**63]}, f"token {2**63} at position 1"),
    ("47-float", {"prompt": [20, 21.0]}, "token 21.0 at position 1 is float"),
    ("47-numpy-float", {"prompt": np.array([20.0])}, "token .*20.0.* at position 0 is float64"),
    ("47-bool", {"prompt": [20, True]}, "token True at position 1 is bool"),
    ("47-numpy-bool", {"prompt": np.array([True])}, "token .*True.* at position 0 is bool"),
    ("47-none", {"prompt": [None]}, "token None at position 0 is NoneType"),
    ("47-text-among-ids", {"prompt": [20, "a"]}, "token 'a' at position 1 is str"),
    ("47-nested", {"prompt": [[20, [21]]]}, r"token \[21\] at position 1 is list"),
    ("47-nested-array", {"prompt": np.ones((1, 1, 1), int)}, "position 0 is ndarray"),
    ("47-array-of-no-dimension", {"prompt": np.array(5)}, "expected str, a list of ids"),
    ("48-new-tokens-negative", {"max_new_tokens": -1}, "max_new_tokens is -1, expected an integer"),
    ("48-new-tokens-huge", {"max_new_tokens": 10**9}, "1000000000 new tokens exceed"),
    ("48-new-tokens-float", {"max_new_tokens": 8.0}, "max_new_tokens is 8.0, expected an integer"),
    ("48-new-tokens-none", {"max_new_tokens": None}, "max_new_tokens is None, expected an"),
    ("48-new-tokens-bool", {"max_new_tokens": True}, "max_new_tokens is True, expected an"),
    *(
        (
            f"48-temperature-{value}",
            {"temperature": value},
            re.escape(f"temperature is {value!r}, expected 0"),
        )
        for value in (-1, NAN, INF, -INF, 1e-30, 1e30, 10**400, True, None, "1")
    ),
    *(
        (f"48-top-p-{value}", {"top_p": value}, f"top_p is {value!r}, expected None")
        for value in (0, -0.1, 1.001, NAN, INF, 10**400, True, "1")
    ),
    *(
        (f"48-top-k-{value}", {"top_k": value}, f"top_k is {value!r}, expected None")
        for value in (-1, 2.5, 2**31, True, "1")
    ),
    *(
        (
            f"48-penalty-{value}",
            {"repetition_penalty": value},
            f"repetition_penalty is {value!r}, expected 1",
        )
        for value in (0, -1, NAN, INF, 1e-30, 10**400, True, None)
    ),
    ("49-greedy-samples", {"n": 2}, "n is 2 with temperature 0"),
    ("49-no-samples", {"n": 0}, "n is 0, expected an integer of at least 1"),
    ("49-samples-float", {"n": 1.0}, "n is 1.0, expected an integer"),
    ("49-samples-bool", {"n": True}, "n is True, expected an integer"),
    *(
        (f"51-seed-{value}", {"seed": value}, "seed is .*, expected an integer from 0")
        for value in (-1, 2**64, 1.0, None, True, "1")
    ),
    ("52-stop-empty", {"stop": ""}, r"stop\[0\] is 0 characters, expected a string of 1 to 1000"),
    ("52-stop-empty-second", {"stop": ["a", ""]}, r"stop\[1\] is 0 characters"),
    ("52-stop-1MB", {"stop": "a" * 2**20}, r"stop\[0\] is 1048576 characters, expected"),
    ("52-stop-500000", {"stop": ["a"] * 500_000}, "stop holds 500000 strings, expected at most 64"),
    ("52-stop-none", {"stop": None}, "stop is NoneType, expected str or a list"),
    ("52-stop-bytes", {"stop": b"a"}, "stop is bytes, expected str or a list"),
    ("52-stop-bytes-in-list", {"stop": [b"a"]}, r"stop\[0\] is bytes, expected a string"),
    ("52-stop-ids", {"stop": [20]}, r"stop\[0\] is int, expected a string"),
    ("52-stop-set", {"stop": {"a"}}, "stop is set, expected str or a list"),
]


def entries(table: list[tuple]) -> list:
    return [pytest.param(*entry[1:], id=entry[0]) for entry in table]


@pytest.mark.parametrize(("arguments", "message"), entries(REFUSED))
def test_refused_before_anything_is_compiled(
    generator: Generator, compiles: Callable[[], int], arguments: dict[str, Any], message: str
) -> None:
    arguments = {"prompt": "def f():"} | arguments
    with pytest.raises(ValueError, match=message):
        generator.generate(arguments.pop("prompt"), **arguments)
    assert compiles() == 0


STREAMED = [
    entry for entry in REFUSED if "n" not in entry[1] and not isinstance(entry[1].get("stop"), set)
]


@pytest.mark.parametrize(("arguments", "message"), entries(STREAMED))
def test_stream_refuses_the_same(
    generator: Generator, arguments: dict[str, Any], message: str
) -> None:
    """In the same words, but for a list of prompts, which it does not take at all."""
    arguments = {"prompt": "def f():"} | arguments
    with pytest.raises(ValueError, match=f"({message})|stream takes one prompt"):
        generator.stream(arguments.pop("prompt"), **arguments)


SAMPLING_KEYS = {"max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed"}
INFILLED = [
    entry for entry in REFUSED if entry[1].keys() <= SAMPLING_KEYS | {"n", "stop", "max_new_tokens"}
]


@pytest.mark.parametrize(("arguments", "message"), entries(INFILLED))
def test_infill_refuses_the_same(
    generator: Generator, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"({message})|max_new_tokens is 1000000000; with 3"):
        generator.infill("def f():", "end", **arguments)


# (case, arguments, arguments that must give the same tokens)
SAME: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("48-temperature-float-0", {"temperature": 0.0}, {"temperature": 0}),
    ("48-temperature-numpy", {"temperature": np.float32(0.5)}, {"temperature": 0.5}),
    ("48-temperature-coldest", {"temperature": 1e-4}, {"temperature": 0}),
    ("48-top-p-1", {"temperature": 1.0, "top_p": 1}, {"temperature": 1.0}),
    ("48-top-p-tiny", {"temperature": 1.0, "top_p": 1e-9}, {"temperature": 0}),
    ("48-top-k-0", {"temperature": 1.0, "top_k": 0}, {"temperature": 1.0}),
    ("48-top-k-1", {"temperature": 1.0, "top_k": 1}, {"temperature": 0}),
    ("48-top-k-vocab", {"temperature": 1.0, "top_k": 288}, {"temperature": 1.0}),
    ("48-top-k-above-vocab", {"temperature": 1.0, "top_k": 10**9}, {"temperature": 1.0}),
    (
        "48-top-k-numpy",
        {"temperature": 1.0, "top_k": np.int64(5)},
        {"temperature": 1.0, "top_k": 5},
    ),
    ("48-penalty-1", {"repetition_penalty": 1}, {}),
    ("49-greedy-filtered", {"top_k": 3, "top_p": 0.1, "seed": 9}, {}),
    ("51-seed-numpy", {"temperature": 1.0, "seed": np.uint64(7)}, {"temperature": 1.0, "seed": 7}),
    ("51-seed-int32", {"temperature": 1.0, "seed": np.int32(3)}, {"temperature": 1.0, "seed": 3}),
    ("51-seed-uint8", {"temperature": 1.0, "seed": np.uint8(3)}, {"temperature": 1.0, "seed": 3}),
    ("52-stop-unmatched", {"stop": ["never to be seen", "x" * 1000]}, {}),
    ("52-stop-none-given", {"stop": []}, {}),
    ("52-stop-64", {"stop": ["never" + "r" * count for count in range(64)]}, {}),
]


@pytest.mark.parametrize(("arguments", "equal"), entries(SAME))
def test_accepted_with_an_exact_meaning(
    generator: Generator, arguments: dict[str, Any], equal: dict[str, Any]
) -> None:
    ours, theirs = (
        generator.generate("def f():", max_new_tokens=SOME, **each) for each in (arguments, equal)
    )
    assert ours.tokens == theirs.tokens
    assert ours.text == theirs.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 1e4},
        {"temperature": 1.0, "seed": 2**64 - 1},
        {"temperature": 1.0, "seed": 2**32},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.5},
        {"repetition_penalty": 2.0},
    ],
)
def test_control_other_values_change_the_tokens(
    generator: Generator, arguments: dict[str, Any]
) -> None:
    """Negative control of the table above: the arguments do reach the model."""
    plain = {"temperature": arguments.get("temperature", 0.0) and 1.0}
    ours, theirs = (
        generator.generate("def f():", max_new_tokens=24, **each) for each in (arguments, plain)
    )
    assert ours.tokens != theirs.tokens


TEXTS = {
    "43-empty": "",
    "43-only-end-of-text": "<|endoftext|>",
    "43-blanks": " \t\n\r\n  ",
    "43-nul": "a\x00b",
    "43-zero-width-and-right-to-left": "a\u200b\u202eb\u05d0",
    "43-combining": "e\u0301",
    "43-byte-order-mark": "\ufeffx",
}


@pytest.mark.parametrize("prompt", TEXTS.values(), ids=TEXTS)
def test_any_text_is_a_prompt(generator: Generator, prompt: str) -> None:
    """Equal to its ids, in which nothing is added, trimmed or cleaned up."""
    special = prompt.startswith("<|")
    ids = generator.tokenizer.encode(prompt, special=special) or [0]
    assert generator.tokenizer.decode(ids, skip_special=not special) in (prompt, "")
    ours = generator.generate(prompt, special=special, max_new_tokens=4)
    assert ours.tokens == generator.generate(ids, max_new_tokens=4).tokens


@pytest.mark.parametrize("prompts", [[], (), np.array([]), np.ones((0, 3), int)])
def test_empty_list_is_a_list_of_no_prompts(generator: Generator, prompts: object) -> None:
    """`np.array([])` was one empty prompt, continued from the end of text."""
    assert generator.generate(prompts) == []


@pytest.mark.parametrize("prompt", [[], np.array([])])
def test_stream_of_an_empty_list_says_what_to_pass(generator: Generator, prompt: object) -> None:
    with pytest.raises(ValueError, match=r'stream takes one prompt.*"" or \[0\], the end of text'):
        generator.stream(prompt)


def test_number_of_samples_does_not_wrap(generator: Generator) -> None:
    """Three prompts of 64 samples are 192 rows, more than int8 holds."""
    arguments = {"temperature": 1.0, "max_new_tokens": 1}
    groups = generator.generate([[20]] * 3, n=np.int8(64), **arguments)
    assert [len(group) for group in groups] == [64] * 3


def test_empty_prompts_in_a_list_are_prompts(generator: Generator) -> None:
    """Negative control of the test above; so is an empty array of ids."""
    expected = generator.generate("", max_new_tokens=4).tokens
    assert generator.generate(np.array([], np.int32), max_new_tokens=4).tokens == expected
    for prompts in ([[]], [""], [np.array([])]):
        (completion,) = generator.generate(prompts, max_new_tokens=4)
        assert completion.tokens == expected


@pytest.mark.parametrize("value", [5, b"x", "", ["x"]])
def test_model_that_is_no_name_is_refused(value: object) -> None:
    """The empty text was the current folder, and the others were TypeErrors."""
    with pytest.raises(ValueError, match=r"path_or_repo is .*, expected a folder") as told:
        Generator.from_pretrained(value)
    assert repr(value) in str(told.value)


@pytest.mark.parametrize("value", ["x", 10.5, True, 0, -1, 257])
def test_context_is_a_number_of_tokens(generator: Generator, value: object) -> None:
    with pytest.raises(ValueError, match=r"context is .*, expected"):
        describe(generator, context=value)


@pytest.mark.parametrize("multi_query", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_at_a_context_is_that_of_its_cache(
    generator: Generator, multi_query: bool, dtype: str
) -> None:
    """Of the buffers that decoding would hold, in a model with one key head and with several."""
    config = dataclasses.replace(generator.config, n_positions=1030, multi_query=multi_query)
    model = Generator(config, {}, generator.tokenizer, dtype=jnp.dtype(dtype))
    for context, capacity in ((1, 256), (256, 256), (257, 512), (1024, 1024), (1025, 1030)):
        cache = init_cache(config, 1, capacity, model.model.dtype)
        expected = sum(buffer.nbytes for buffer in cache.layers)
        assert describe(model, context=context)["cache_bytes"] == expected
    assert describe(model)["cache_bytes"] == expected


def test_long_text_is_refused_in_bounded_time(generator: Generator) -> None:
    """Case 43: a million letters in one line."""
    with pytest.raises(ValueError, match=r"1000000 prompt tokens \+ 8 new tokens exceed"):
        generator.generate("a" * 10**6, max_new_tokens=SOME)


def test_stop_given_as_text_or_list_is_the_same() -> None:
    assert check_stop("ab") == check_stop(["ab"]) == check_stop(("ab",)) == ("ab",)
    assert check_stop("a" * 1000) == ("a" * 1000,)
    assert check_stop(()) == ()


def test_stop_equal_to_the_whole_text_leaves_nothing(generator: Generator) -> None:
    """Case 52; overlapping stops cut at the earliest start."""
    text = generator.generate("def f():", max_new_tokens=SOME).text
    for stop in (text, [text, text[1:]], [text[1:], text[:2]]):
        completion = generator.generate("def f():", max_new_tokens=SOME, stop=stop)
        assert completion.finish_reason == "stop"
        assert text.startswith(completion.text)
        assert len(completion.text) <= 1
