"""Checks of what callers pass to `Generator`; each failure is a ValueError that says what to do."""

from collections.abc import Sequence
from numbers import Integral
from typing import TypedDict

import numpy as np

from .config import ModelConfig

Prompt = str | Sequence[int]


class DrawingArguments(TypedDict, total=False):
    """What `Generator.generate` and `Generator.infill` both take by name, for type checkers."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    progress: bool


LONGEST_STOP, MOST_STOPS = 1000, 64


def is_single_prompt(prompt: object) -> bool:
    """Whether `prompt` is one prompt (text, or a list of ids) and not a list of prompts.

    An empty list is an empty list of prompts, and so is an empty array, unless its integer type
    says that it holds ids.
    """
    if isinstance(prompt, str):
        return True
    if isinstance(prompt, np.ndarray) and prompt.ndim > 0:
        return prompt.ndim == 1 and (prompt.size > 0 or np.issubdtype(prompt.dtype, np.integer))
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise ValueError(
            f"prompt is {type(prompt).__name__}, expected str, a list of ids, or a list of those"
        )
    return len(prompt) > 0 and not isinstance(prompt[0], str | Sequence | np.ndarray)


def check_ids(ids: object) -> list[int]:
    """`ids` as a list of int; refuses anything but a flat sequence of integers."""
    if isinstance(ids, bytes) or not isinstance(ids, Sequence | np.ndarray):
        raise ValueError(f"prompt is {type(ids).__name__}, expected str or a list of ids")
    for position, token in enumerate(ids):
        if isinstance(token, bool | np.bool_) or not isinstance(token, Integral):
            raise ValueError(
                f"prompt: token {token!r} at position {position} is {type(token).__name__}, "
                "expected an integer id"
            )
        if not -(2**63) <= int(token) < 2**63:  # an array would make it an object or a float
            raise ValueError(f"prompt: token {token} at position {position} is no id of any model")
    return [int(token) for token in ids]


def check_count(name: str, value: object, *, least: int) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
    return int(value)


def check_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple; refuses empty ones, and more or longer ones than make sense."""
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or isinstance(stops, bytes):
        raise ValueError(f"stop is {type(stop).__name__}, expected str or a list of str")
    if len(stops) > MOST_STOPS:
        raise ValueError(f"stop holds {len(stops)} strings, expected at most {MOST_STOPS}")
    for index, text in enumerate(stops):
        if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_STOP:
            shown = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            raise ValueError(
                f"stop[{index}] is {shown}, expected a string of 1 to {LONGEST_STOP} characters"
            )
    return tuple(stops)


def check_token_rows(
    tokens: object, lengths: Sequence[int] | np.ndarray | None, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """`tokens` as integers [B, T] and `lengths` as integers [B], by default T each.

    Refuses another shape or type, T above n_positions, and lengths outside 1..T.
    """
    try:
        rows = np.asarray(tokens)
    except ValueError as exc:
        raise ValueError(
            "tokens has rows of different lengths, expected integers [B, T]; "
            "pad them on the right and pass lengths"
        ) from exc
    if rows.ndim != 2 or rows.size == 0 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"tokens is {rows.dtype} of shape {list(rows.shape)}, "
            "expected integers [B, T] and at least one"
        )
    batch, length = rows.shape
    if length > config.n_positions:
        raise ValueError(
            f"tokens has T = {length}, which exceeds the model's {config.n_positions} "
            "positions; pass fewer"
        )
    counts = np.full(batch, length) if lengths is None else np.asarray(lengths)
    if counts.shape != (batch,) or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"lengths is {lengths!r}, expected {batch} integers")
    if counts.min() < 1 or counts.max() > length:
        raise ValueError(f"lengths is {lengths!r}, expected values from 1 to T = {length}")
    return rows, counts
