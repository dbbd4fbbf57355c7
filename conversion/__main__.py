"""``python -m conversion``: convert, export, verify.

A wrong value or file is one line on standard error, wrong usage is tyro's box; both are exit
status 2.
"""

import sys
from typing import Annotated

import tyro

from .convert import Convert
from .export import Export


def main() -> None:
    """Entry point of ``python -m conversion``."""
    from .verify import Verify

    command = tyro.cli(
        Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Verify, tyro.conf.subcommand("verify")],
        prog="python -m conversion",
        description="Convert other layouts, export to Hugging Face's, verify against PyTorch.",
    )
    try:
        status = command.run()
    except ValueError as exc:
        print(f"conversion: {exc}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
