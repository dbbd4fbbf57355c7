"""Which files are Python that someone wrote, and which are vendored, generated or data."""

import ast
import re
import warnings
from pathlib import PurePosixPath

from .licences import has_other_licence

_VENDORED = frozenset(
    {"_vendor", "_vendored", "vendor", "vendored", "_vendored_packages", "extern", "externals"}
    | {"third_party", "thirdparty", "_extern", "contrib_vendored"}
)
_TESTS = frozenset({"test", "tests", "testing", "idle_test", "test_data", "testdata"})
_GENERATED = re.compile(
    r"(?i)\b(auto-?|automatically |machine[- ])generated\b|@generated|\bgenerated (by|from)\b"
    r"|\bdo not (edit|modify)\b"
)
_HEADER_CHARACTERS = 1500
_FEWEST_BYTES = 200
_MOST_BYTES = 200_000
_LONGEST_LINE = 2000
_LONGEST_MEAN_LINE = 120
_MOST_DIGITS = 0.15
_MOST_NON_ASCII = 0.05


def is_vendored(path: PurePosixPath) -> bool:
    """Whether a folder of `path` is one for copies of other packages; their licence is theirs."""
    return not _VENDORED.isdisjoint(path.parts[:-1])


def is_test(path: PurePosixPath) -> bool:
    """Whether `path` is a test, by its folders or its name."""
    name = path.name
    return (
        not _TESTS.isdisjoint(path.parts[:-1])
        or name.startswith("test_")
        or name.endswith("_test.py")
        or name == "conftest.py"
    )


def rejection(contents: bytes) -> str | None:
    """Why a file is left out, or None: one of few reasons, to be counted."""
    if not _FEWEST_BYTES <= len(contents) <= _MOST_BYTES:
        return "size"
    try:
        text = contents.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if has_other_licence(text):
        return "licence header"
    if _GENERATED.search(text[:_HEADER_CHARACTERS]):
        return "generated"
    lines = text.splitlines()
    if max(map(len, lines)) > _LONGEST_LINE or len(text) > _LONGEST_MEAN_LINE * len(lines):
        return "long lines"
    # Runs of blanks would hide a table of numbers behind its indentation.
    dense = "".join(text.split())
    if sum(map(dense.count, "0123456789")) > _MOST_DIGITS * len(dense):
        return "digits"
    if len(contents) - len(text) > _MOST_NON_ASCII * len(contents):
        return "not English"
    return None if _parses(text) else "syntax"


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, in the files' own code
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
