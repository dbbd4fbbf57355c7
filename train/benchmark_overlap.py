"""Documents that hold text of HumanEval, whose scores they would inflate."""

import gzip
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from jaxcoder.errors import ConfigError
from jaxcoder.json_file import open_regular_file, parse_json_object

SHORTEST = 40
"""Characters below which a docstring or solution proves nothing: ``return x + y`` is anywhere."""

_MOST_BYTES = 64 << 20


class Benchmark(NamedTuple):
    """What to look for: texts of tasks, by their longest line."""

    texts: dict[str, list[str]]
    """Longest line of a text -> the texts with it, in the form `_normal` gives."""


def read_human_eval(path: Path) -> Benchmark:
    """The docstrings and solutions of ``HumanEval.jsonl`` or ``HumanEval.jsonl.gz``.

    A document with a task's prompt has its docstring too, so prompts need no search of their own.

    Raises:
      ConfigError: not such a file.
    """
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(_content(path).splitlines(), 1):
        task = parse_json_object(line, f"{path}:{number}", error=ConfigError)
        prompt, solution = task.get("prompt"), task.get("canonical_solution")
        if not isinstance(prompt, str) or not isinstance(solution, str):
            raise ConfigError(
                f"{path}:{number}: fields {', '.join(task) or None}, expected the strings prompt "
                "and canonical_solution; give the published HumanEval.jsonl.gz"
            )
        # A prompt ends with its docstring; what stands before the quotes is the signature.
        pieces = re.split("\"\"\"|'''", prompt)
        for text in map(_normal, (pieces[-2] if len(pieces) > 2 else prompt, solution)):
            if len(text) >= SHORTEST:
                texts.setdefault(max(text.split("\n"), key=len), []).append(text)
    if not texts:
        raise ConfigError(f"{path}: no tasks, expected 164; give the published HumanEval.jsonl.gz")
    return Benchmark(texts)


def overlaps(text: str, benchmark: Benchmark) -> bool:
    """Whether whole lines of `text`, blanks and quotes aside, spell a text of the benchmark."""
    normal = _normal(text)
    lines = benchmark.texts.keys() & set(normal.split("\n"))
    return any(
        f"\n{wanted}\n" in f"\n{normal}\n" for line in lines for wanted in benchmark.texts[line]
    )


def _normal(text: str) -> str:
    """Lines without indentation and quotes, empty ones left out: layout does not hide a copy."""
    stripped = (line.strip(" \t\r\f\"'") for line in text.split("\n"))
    return "\n".join(line for line in stripped if line)


def _content(path: Path) -> bytes:
    with open_regular_file(path, error=ConfigError) as (file, _):
        try:
            raw = (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file).read(_MOST_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
            raise ConfigError(
                f"{path}: damaged gzip file ({exc}); download HumanEval.jsonl.gz again"
            ) from exc
    return raw
