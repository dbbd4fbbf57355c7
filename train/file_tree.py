"""Files below a folder by glob, in an order that does not depend on the operating system."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxcoder.errors import ConfigError


def list_files(folder: Path, globs: Sequence[str], exclude: Sequence[str]) -> Iterator[str]:
    """Files below `folder` that match one of `globs` and none of `exclude`, by name.

    In a glob ``*`` and ``?`` stop at a slash and ``**`` does not. Hidden files and folders are left
    out, as a shell does, and links to folders are not followed. One directory's names at a time are
    held in memory.

    Returns:
      Paths relative to `folder`.

    Raises:
      ConfigError: a directory cannot be read.
    """
    wanted, unwanted = _pattern(globs), _pattern(exclude)
    whole = _pattern([glob for glob in exclude if glob.endswith("**")])
    try:
        for place, folders, files in os.walk(folder, onerror=_stop):
            above = Path(place).relative_to(folder).as_posix().removeprefix(".")
            above = f"{above}/" if above else ""
            # An excluded folder, such as one of thousands of installed files, is not even listed.
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not whole.fullmatch(f"{above}{name}/")
            )
            for name in sorted(files):
                file = above + name
                if name.startswith(".") or unwanted.fullmatch(file) or not wanted.fullmatch(file):
                    continue
                yield file
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename}: cannot be listed ({exc.strerror}); check the folder and its mode"
        ) from exc


def _stop(problem: OSError) -> None:
    raise problem


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    """One regular expression for paths with slashes that match any of `globs`."""
    return re.compile("|".join(map(_translate, globs)) or r"(?!)", re.DOTALL)


def _translate(glob: str) -> str:
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return "".join(meaning.get(part) or re.escape(part) for part in parts)
