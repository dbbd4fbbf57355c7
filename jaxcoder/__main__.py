"""``python -m jaxcoder`` is the ``jaxcoder`` command."""

import os
import sys


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
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
