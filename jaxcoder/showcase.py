"""What `jaxcoder demo` shows: one completion streamed, one hole filled in its place, the speed."""

import time
from collections.abc import Callable

import jax

from .generator import Generator

PROMPT = '''\
import os


def read_lines(path):
    """Return the lines of a file."""'''

PREFIX = """\
class Counter:
    def __init__(self):"""
SUFFIX = """

    def add(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def total(self):
        return sum(self.counts.values())
"""

TINY = "The demo model is tiny: it shows that everything runs, its output is not to be used.\n\n"

NEXT = """
Next, the real model (its weights are under the BigCode OpenRAIL-M licence):

  {command} complete 'def fibonacci(n):' --model bigcode/tiny_starcoder_py
"""

_COMPLETION_TOKENS = 64
# Greedily, a small model soon repeats itself.
_TEMPERATURE = 0.4
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
    write(
        f"--- completion: {_COMPLETION_TOKENS} tokens after the prompt, "
        f"temperature {_TEMPERATURE}\n{PROMPT}"
    )
    for piece in generator.stream(
        PROMPT, max_new_tokens=_COMPLETION_TOKENS, temperature=_TEMPERATURE
    ):
        write(piece)
    write("\n\n--- infill: what stands between the marks was missing\n")
    middle = generator.infill(PREFIX, SUFFIX, max_new_tokens=_INFILL_TOKENS)
    write(f"{PREFIX}⟦{middle.text}⟧{SUFFIX}")
    began = time.perf_counter()
    again = generator.generate(PROMPT, max_new_tokens=_COMPLETION_TOKENS, temperature=_TEMPERATURE)
    rate = len(again.tokens) / (time.perf_counter() - began)
    count = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
    write(f"\n--- {rate:.0f} tokens/s, a model of {count:,} parameters\n")
    write(NEXT.format(command=command))
