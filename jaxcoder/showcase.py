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

TINY = "The demo model is tiny: it shows that everything runs, its output is not to be used.\n\n"

NEXT = """
Next, the real model (its weights are under the BigCode OpenRAIL-M licence):

  {command} complete 'def fibonacci(n):' --model bigcode/tiny_starcoder_py
"""

_COMPLETION_TOKENS = 64
_INFILL_TOKENS = 32


def showcase(
    generator: Generator, write: Callable[[str], None], *, command: str, is_demo_model: bool
) -> None:
    """Complete, infill and time with `generator`, and say what to try next.

    Tokens per second are those of a second run, in which nothing compiles.

    Args:
      generator: of any model.
      write: shows text at once.
      command: how the reader calls this command.
      is_demo_model: whether the model is the one inside the package, whose output is no good.
    """
    if is_demo_model:
        write(TINY)
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
    write(f"\n--- {rate:.0f} tokens/s, a model of {count:,} parameters\n")
    write(NEXT.format(command=command))
