"""Single lines of held-out files, written with the text after them in view, and without.

The hole is the end of the line before and the line itself: a prompt that ended after the newline
would cut the token that joins it with the indentation, which left-to-right completion pays for
and infilling, trained on cuts anywhere, does not. Both get the same new tokens; left to right
gets all the text before that fits in front of the positions that training reserves for the ends
of middles. Both are greedy, and cut at the line's end.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcoder import Generator
from train.pieces import RESERVE

from .intervals import bootstrap, share

NEW_TOKENS = 48
SHORTEST_LINE = 6

# Characters on each side that are tokenised: more than a window of tokens has.
_CONTEXT_CHARACTERS = 12
_EXAMPLES = 6


class Hole(NamedTuple):
    """A line taken out of a file."""

    prefix: str
    """Up to the end of the line before, without its newline."""
    line: str
    suffix: str
    """From the line's own newline on."""


def find_holes(text: str) -> Iterator[Hole]:
    """Lines of 6 characters or more, blanks around them not counted, after a line with text."""
    if "\r" in text:
        return
    lines = text.split("\n")
    for number in range(1, len(lines) - 1):
        line, before = lines[number], lines[number - 1]
        has_blank_end = line != line.rstrip() or before != before.rstrip()
        if len(line.strip()) >= SHORTEST_LINE and before and not has_blank_end:
            prefix = "\n".join(lines[:number])
            yield Hole(prefix, line, "\n" + "\n".join(lines[number + 1 :]))


def written_line(completion: str) -> str | None:
    """The line a completion puts into the hole, without blanks at its end; None: no new line."""
    if not completion.startswith("\n"):
        return None
    return completion[1:].partition("\n")[0].rstrip()


def compare_infill(
    generator: Generator, texts: Mapping[str, str], *, count: int, seed: int = 0
) -> dict[str, Any]:
    """Exact matches of infilling (prefix, suffix, middle) and of left-to-right completion.

    Args:
      generator: model and tokenizer.
      texts: name to text of the held-out files.
      count: lines, drawn from all of them.
      seed: of the choice.

    Raises:
      ValueError: fewer lines than `count`.
    """
    holes = _choose(texts, generator.config.n_positions, count=count, seed=seed)
    room = generator.config.n_positions - RESERVE - NEW_TOKENS
    prompts = {
        "psm": [
            generator.infill_prompt(hole.prefix, hole.suffix, max_new_tokens=NEW_TOKENS).tokens
            for hole in holes
        ],
        "left_to_right": [generator.tokenizer.encode(hole.prefix)[-room:] for hole in holes],
    }
    written = {
        name: [
            written_line(completion.text)
            for completion in generator.generate(rows, max_new_tokens=NEW_TOKENS)
        ]
        for name, rows in prompts.items()
    }
    right = np.array(
        [
            [written[name][number] == hole.line for name in prompts]
            for number, hole in enumerate(holes)
        ]
    )
    return {
        **{name: share(int(right[:, i].sum()), count) for i, name in enumerate(prompts)},
        **_ratio(right),
        "settings": {"new_tokens": NEW_TOKENS, "temperature": 0.0, "seed": seed},
        "examples": [
            {"line": hole.line, **{name: lines[number] for name, lines in written.items()}}
            for number, hole in enumerate(holes[:_EXAMPLES])
        ],
    }


def _ratio(right: np.ndarray) -> dict[str, Any]:
    """How much more often the first column [n, 2] is right than the second, paired by line.

    The ratio or an end of its interval is None where the second is never right; the margin over
    twice the second is a number always.
    """

    def ratio(sums: np.ndarray) -> np.ndarray:
        first, second = sums[..., 0], sums[..., 1]
        return np.where(second > 0, first / np.maximum(second, 1), np.inf)

    def margin(sums: np.ndarray) -> np.ndarray:
        return (sums[..., 0] - 2 * sums[..., 1]) / len(right)

    result = {}
    for name, statistic in (("ratio", ratio), ("psm_minus_twice_left_to_right", margin)):
        values = [float(statistic(right.sum(axis=0))), *bootstrap(right, statistic)]
        value, *interval = [value if np.isfinite(value) else None for value in values]
        result[name] = {"value": value, "interval": interval}
    return result


def _choose(texts: Mapping[str, str], window: int, *, count: int, seed: int) -> list[Hole]:
    holes = [hole for text in texts.values() for hole in find_holes(text)]
    if len(holes) < count:
        raise ValueError(
            f"held_out: {len(holes)} lines of {SHORTEST_LINE} characters or more, expected {count} "
            "or more; hold out more files or ask for fewer"
        )
    context = _CONTEXT_CHARACTERS * window
    return [
        hole._replace(prefix=hole.prefix[-context:], suffix=hole.suffix[:context])
        for hole in (
            holes[number] for number in np.random.default_rng(seed).permutation(len(holes))[:count]
        )
    ]
