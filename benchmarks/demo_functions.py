"""Bodies written for held-out function headers with their docstrings: how many are Python.

The prompt is the file up to the docstring's closing quotes, without the line's end: the tokenizer
joins it with the indentation that follows, so that a lone newline would ask for a line at the
margin. Prompt and body keep clear of the positions that training reserves, where it shows nothing
but the ends of middles: a model writes the end of text there. The body ends before the first line
indented less than the docstring. Where it has not ended when the tokens run out, what follows the
last complete line is dropped.
"""

import ast
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcoder import Generator
from train.pieces import RESERVE

from .intervals import share

NEW_TOKENS = 96
TEMPERATURE = 0.2

# Characters before the header that are tokenised: more than a window of tokens has.
_CONTEXT_CHARACTERS = 12
# Tokens that joining the header to the text before it may add.
_JOINT = 8
_EXAMPLES = 6


class Header(NamedTuple):
    """A function to write a body for."""

    before: str
    """The file up to the line of ``def``."""
    header: str
    """From that line to the docstring's closing quotes."""
    indent: str
    """What stands before the docstring: the body's indentation."""
    after: str
    """The file after the docstring's closing quotes, which the model does not see."""


class Body(NamedTuple):
    """What was written, up to the function's end."""

    text: str
    ending: Literal["dedent", "end of text", "length"]


def find_headers(text: str) -> Iterator[Header]:
    """Functions of a file with a docstring on lines of its own and something after it."""
    if "\r" in text or "\f" in text:
        return  # the syntax tree counts lines in another way than we do
    lines = text.split("\n")
    for node in ast.walk(_parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring, second = node.body[:2]
        if not ast.get_docstring(node, clean=False) or docstring.lineno == node.lineno:
            continue
        indent = lines[docstring.lineno - 1][: docstring.col_offset]
        end = docstring.end_lineno or docstring.lineno  # None in trees that are not parsed
        last = lines[end - 1]
        rest = last.encode()[docstring.end_col_offset :]
        if indent.strip() or rest.strip() or second.lineno == end:
            continue
        header = "\n".join([*lines[node.lineno - 1 : end - 1], last.rstrip()])
        before = "".join(f"{line}\n" for line in lines[: node.lineno - 1])
        after = "".join(f"\n{line}" for line in lines[end:])
        yield Header(before, header, indent, after)


def cut_at_dedent(completion: str, indent: str, *, has_ended: bool) -> Body:
    """The body at the start of `completion`, which follows the docstring's closing quotes.

    Args:
      completion: the model's text.
      indent: the body's indentation; a line with less, and not blank, ends it.
      has_ended: the model wrote the end of text; else it ran out of tokens, and without such a
        line its last line may be half a line and is dropped.
    """
    lines = completion.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line.strip() and len(line) - len(line.lstrip()) < len(indent):
            return Body("\n".join(lines[:number]), "dedent")
    if has_ended:
        return Body(completion, "end of text")
    return Body("\n".join(lines[:-1]), "length")


def parses(header: str, body: str) -> bool:
    """Whether header, docstring and body are a function with a statement after the docstring."""
    source = header + body + "\n"
    is_indented = header[:1].isspace()
    try:
        # A block around it, not textwrap.dedent: strings may hold lines at the margin.
        tree = _parse("if True:\n" + source if is_indented else source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    block = tree.body[0]
    statements = block.body if is_indented and isinstance(block, ast.If) else tree.body
    function = statements[0]
    is_function = isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return is_function and len(statements) == 1 and len(function.body) > 1


def is_trivial(body: str) -> bool:
    """Whether a body has nothing but ``pass``, ``...`` or one repeated line.

    Comment lines and blank ones do not count. A body of nothing else is no body, see `is_empty`.
    """
    lines = _code_lines(body)
    if lines and set(lines) <= {"pass", "..."}:
        return True
    return len(lines) > 1 and len(set(lines)) == 1


def is_empty(body: str) -> bool:
    """Whether a body has nothing but comments and blank lines: the function is its docstring."""
    return not _code_lines(body)


def gets_stuck(body: str) -> bool:
    """Whether the same line, with a letter or digit, stands three times in a row anywhere."""
    runs = ((line, len(list(run))) for line, run in itertools.groupby(_code_lines(body)))
    return any(length >= 3 and any(map(str.isalnum, line)) for line, length in runs)


def _code_lines(body: str) -> list[str]:
    stripped = (line.strip() for line in body.split("\n"))
    return [line for line in stripped if line and not line.startswith("#")]


def function_bodies(
    generator: Generator, texts: Mapping[str, str], *, count: int, seed: int = 0
) -> dict[str, Any]:
    """Write a body for each of `count` headers, and measure them.

    Args:
      generator: model and tokenizer.
      texts: name to text of the held-out files.
      count: headers, drawn from all that fit the model's window with the new tokens.
      seed: of the choice and of the sampling, at temperature 0.2.

    Raises:
      ValueError: fewer headers than `count`, or a window that is too short.
    """
    room = generator.config.n_positions - RESERVE - NEW_TOKENS
    headers = _choose(generator, texts, room, count=count, seed=seed)
    context = _CONTEXT_CHARACTERS * generator.config.n_positions
    prompts = [
        generator.tokenizer.encode(header.before[-context:] + header.header)[-room:]
        for header in headers
    ]
    completions = generator.generate(
        prompts, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, seed=seed
    )
    bodies = [
        cut_at_dedent(completion.text, header.indent, has_ended=completion.finish_reason == "eos")
        for header, completion in zip(headers, completions, strict=True)
    ]
    return {
        "model": _measured(headers, bodies),
        "true_text": _measured(headers, _true_bodies(generator, headers)),
        "settings": {"temperature": TEMPERATURE, "new_tokens": NEW_TOKENS, "seed": seed},
        "examples": [
            {"header": header.header, "body": body.text}
            for header, body in zip(headers[:_EXAMPLES], bodies, strict=False)
        ],
    }


def _measured(headers: Sequence[Header], bodies: Sequence[Body]) -> dict[str, Any]:
    good = [parses(header.header, body.text) for header, body in zip(headers, bodies, strict=True)]
    ended = [is_good for is_good, body in zip(good, bodies, strict=True) if body.ending != "length"]
    return {
        "parses": share(sum(good), len(good)),
        "parses_of_those_that_ended": share(sum(ended), len(ended)) if ended else None,
        **{
            name: share(sum(judge(body.text) for body in bodies), len(bodies))
            for name, judge in (("trivial", is_trivial), ("empty", is_empty), ("stuck", gets_stuck))
        },
        "endings": dict(Counter(body.ending for body in bodies)),
    }


def _true_bodies(generator: Generator, headers: Sequence[Header]) -> list[Body]:
    """What the files themselves go on with, within the same tokens: the figures to be reached."""
    bodies = []
    for header in headers:
        ids = generator.tokenizer.encode(header.after[: _CONTEXT_CHARACTERS * NEW_TOKENS])
        text = generator.tokenizer.decode(ids[:NEW_TOKENS])
        has_ended = len(ids) <= NEW_TOKENS
        bodies.append(cut_at_dedent(text, header.indent, has_ended=has_ended))
    return bodies


def _choose(
    generator: Generator, texts: Mapping[str, str], room: int, *, count: int, seed: int
) -> list[Header]:
    found = [header for text in texts.values() for header in find_headers(text)]
    fitting = [
        header
        for header in found
        if len(generator.tokenizer.encode(header.header)) + _JOINT <= room
    ]
    if len(fitting) < count:
        raise ValueError(
            f"held_out: {len(fitting)} functions with a docstring that fits {room} tokens, "
            f"of {len(found)}, expected {count} or more; hold out more files or ask for fewer"
        )
    chosen = np.random.default_rng(seed).permutation(len(fitting))[:count]
    return [fitting[number] for number in chosen]


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes, in other people's code
        return ast.parse(source)
