"""``python -m train``: says that training is not there yet, and fails."""

import sys


def main() -> int:
    """Print one line to stderr and return exit status 2."""
    print(
        "train: not implemented yet; the training loop is the next milestone, see CHANGELOG.md",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
