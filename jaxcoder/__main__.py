"""The ``jaxcoder`` command, also as ``python -m jaxcoder``: starts cli.py."""

import contextlib
import os
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Run the command; an interruption while cli.py is still being imported is quiet too."""
    if sys.stderr is None:
        # Closed by the caller. Libraries that print to it would print to standard output, and the
        # next file opened, a checkpoint perhaps, would get its descriptor.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        from .cli import main as run_command

        run_command()
    except KeyboardInterrupt:
        _leave_at_once()
    except SystemExit as exc:
        if exc.code == INTERRUPTED:
            _leave_at_once()
        raise


def _leave_at_once() -> None:
    """End without tearing down: XLA may still be compiling, and would crash meanwhile."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
