"""``python -m train.demo_corpus``: write the demo model's corpus and say how large it is."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from .build import MOST_BYTES, build


@dataclass(frozen=True)
class Arguments:
    """Folders of the corpus."""

    wheels: Path
    """Wheels and source archives, from `pip download --no-deps`."""
    out: Path
    """Where train, heldout_stdlib, heldout_thirdparty and manifest.json are written."""
    most_bytes: int = MOST_BYTES
    """Taken of one package; the standard library is taken whole."""


def main() -> int:
    """Build, print one line per folder; exit status 2 on a mistake."""
    arguments = tyro.cli(Arguments, prog="python -m train.demo_corpus")
    try:
        manifest = build(arguments.wheels, arguments.out, most_bytes=arguments.most_bytes)
    except (ValueError, OSError) as exc:
        print(f"train.demo_corpus: {exc}", file=sys.stderr)
        return 2
    for name in ("train", "heldout_stdlib", "heldout_thirdparty"):
        counts = manifest[name]
        print(f"{name}: {counts['files']} files, {counts['bytes'] / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
