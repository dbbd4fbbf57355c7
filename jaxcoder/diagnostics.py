"""What is said to the user beside the output: one place, so that it never lands in the output."""

import contextlib
import sys


def say(text: str) -> None:
    """Put `text` and a newline on standard error; dropped where that is closed or full.

    A program started with standard error closed has no `sys.stderr`, and `print` would fall back
    to standard output.
    """
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
