"""What the ``jaxcoder`` command reads and writes: files, standard input, standard output."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .diagnostics import say


def read_text(path: Path) -> str:
    """The text of a file, line ends as they are.

    Raises:
      ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        # newline="" keeps \r\n as it is: the file is written back as it was.
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path}: byte {exc.start} is not UTF-8; convert the file first") from exc
    except OSError as exc:
        raise ValueError(
            f"{path}: cannot be read ({exc.strerror}); check the path and its mode"
        ) from exc


def read_standard_input() -> str:
    """All of standard input.

    Raises:
      ValueError: it is closed, or not UTF-8.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed; give a prompt or --file")
    if sys.stdin.isatty():
        say("jaxcoder: type the prompt, end it with Ctrl-D")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"standard input: byte {exc.start} is not UTF-8") from exc


def write_pieces(pieces: Iterator[str]) -> None:
    """Put `pieces` on standard output, exactly and one by one; a newline ends it on a terminal.

    Raises:
      ValueError, SystemExit: as `write`.
    """
    last = ""
    for piece in pieces:
        write(piece)
        last = piece or last
    if standard_output().isatty() and not last.endswith("\n"):
        write("\n")


def write(text: str) -> None:
    """Put `text` on standard output at once, as UTF-8 whatever the locale.

    Raises:
      ValueError: it is closed, or cannot be written.
      SystemExit: its reader has gone.
    """
    output = standard_output()
    try:
        output.buffer.write(text.encode())
        output.buffer.flush()
    except OSError as exc:
        # Python would try once more at exit, and complain in words of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        if isinstance(exc, BrokenPipeError):  # the reader has gone, as `| head` does
            raise SystemExit(1) from None
        raise ValueError(f"standard output: cannot be written ({exc.strerror})") from exc


def standard_output() -> TextIO:
    """Standard output.

    Raises:
      ValueError: it is closed.
    """
    if sys.stdout is None:
        raise ValueError("standard output is closed; give the text somewhere to go")
    return sys.stdout
