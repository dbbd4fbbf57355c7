"""Strict JSON reading: bounded size, UTF-8, no repeated keys, no NaN; errors say where or what."""

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .problems import shorten

_MAX_DEPTH = 64
_TOO_DEEP = f"offset 0: nested too deeply, expected at most {_MAX_DEPTH} levels; not such a file"


def read_regular_file(path: Path, *, limit: int, error: type[ValueError]) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; anything else raises `error`."""
    with open_regular_file(path, error=error) as (file, info):
        if info.st_size > limit:
            raise error(
                f"{path}: {info.st_size} bytes, expected at most {limit}; not read, "
                "check that it is the right file"
            )
        return file.read()


@contextlib.contextmanager
def open_regular_file(
    path: Path, *, error: type[ValueError]
) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """A regular file, open for reading, and its status; anything else raises `error`.

    The kind of file is checked before it is opened, so that a FIFO cannot block the caller.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise error(f"{path}: expected a regular file, got {file_kind(mode)}; replace it")
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno())
    except FileNotFoundError as exc:
        kind = "a dangling link" if path.is_symlink() else "no such file"
        raise error(f"{path}: {kind}; expected a file. Check the folder's content") from exc
    except OSError as exc:
        raise error(
            f"{path}: cannot be read ({exc.strerror}); check the path and its mode"
        ) from exc


def file_kind(mode: int) -> str:
    """An English name of a file type other than a regular one, from ``st_mode``."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    return next((name for test, name in kinds if test(mode)), "a special file")


def read_json_object(
    path: Path, *, limit: int = 16 << 20, error: type[ValueError]
) -> dict[str, Any]:
    """The JSON object in `path`; raises `error` when it is not one."""
    return parse_json_object(read_regular_file(path, limit=limit, error=error), path, error=error)


def parse_json_object(raw: bytes, source: object, *, error: type[ValueError]) -> dict[str, Any]:
    """Parse `raw` as one JSON object; `source` names it in errors."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise error(
            f"{source}: line 1 column 1: starts with a UTF-8 byte order mark; "
            "save the file as plain UTF-8"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise error(
            f"{source}: byte {exc.start}: not UTF-8 (0x{raw[exc.start]:02x}); expected JSON text, "
            "save it as UTF-8 or download it again"
        ) from exc

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            key = next(k for k, _ in pairs if k in seen or seen.add(k))
            # No position: the parser gives none, and the same text may be a value or another
            # object's key.
            raise error(f"{source}: duplicate key {shorten(key)} in one object; keep one")
        return result

    def reject_constant(name: str) -> float:
        words = re.finditer(r'"(?:[^"\\]++|\\.)*+"|-?(?:NaN|Infinity)', text)
        position = next((word.start() for word in words if word.group() == name), 0)
        raise error(f"{source}: {_line_column(text, position)}: {name} is not JSON; use a number")

    try:
        value = json.loads(
            text, object_pairs_hook=reject_duplicates, parse_constant=reject_constant
        )
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno} column {exc.colno} (offset {exc.pos})"
        raise error(f"{source}: {where}: not valid JSON: {exc.msg}; correct it") from exc
    except error:
        raise
    except ValueError as exc:
        raise error(f"{source}: an integer of thousands of digits; expected ordinary ones") from exc
    except RecursionError as exc:
        raise error(f"{source}: {_TOO_DEEP}") from exc
    if not isinstance(value, dict):
        raise error(
            f"{source}: line 1 column 1 (offset 0): holds a JSON {type(value).__name__}, "
            "expected an object"
        )
    if _is_too_deep(value):
        raise error(f"{source}: {_TOO_DEEP}")
    return value


def _is_too_deep(value: Any) -> bool:
    """Whether containers nest beyond the limit, so that no later ``repr`` or ``==`` overflows."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [item for items in children for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _line_column(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line} column {column}"


def json_bytes(fields: Mapping[str, Any]) -> bytes:
    """`fields` as the content of an indented JSON file."""
    return (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()
