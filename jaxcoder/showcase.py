"""What `jaxcoder demo` shows: one completion streamed, one hole filled in its place, the speed."""

import time
from collections.abc import Callable

import jax

from .generator import Generator

PROMPT = '''\
class Stack:
    """A last-in, first-out container."""

    def __init__(self):
        self.items = []

    def push(self, item):
        """Put an item on top of the stack."""
        self.'''

PREFIX = '''\
import os


def read_text(path, encoding="utf-8"):
    """Return the content of a text file."""
    with open(path, encoding=encoding) as '''
SUFFIX = """:
        return file.read()


def write_text(path, text, encoding="utf-8"):
    with open(path, "w", encoding=encoding) as file:
        file.write(text)
"""

NEXT = """
Next, the real model (its weights are under the BigCode OpenRAIL-M licence):

  jaxcoder complete 'def fibonacci(n):' --model bigcode/tiny_starcoder_py
"""

_COMPLETION_TOKENS = 64
_INFILL_TOKENS = 32


def showcase(generator: Generator, write: Callable[[str], None]) -> None:
    """Complete, infill and time with `generator`; `write` shows text at once.

    Tokens per second are those of a second run, in which nothing compiles.
    """
    write(f"--- completion: {_COMPLETION_TOKENS} tokens after the prompt, greedy\n{PROMPT}")
    for piece in generator.stream(PROMPT, max_new_tokens=_COMPLETION_TOKENS):
        write(piece)
    write("\n\n--- infill: what stands between the marks was missing\n")
    middle = generator.infill(PREFIX, SUFFIX, max_new_tokens=_INFILL_TOKENS)
    write(f"{PREFIX}⟦{middle.text}⟧{SUFFIX}")
    began = time.perf_counter()
    again = generator.generate(PROMPT, max_new_tokens=_COMPLETION_TOKENS)
    rate = len(again.tokens) / (time.perf_counter() - began)
    count = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
    write(f"\n--- {rate:.0f} tokens/s, a model of {count:,} parameters\n{NEXT}")
