"""Where documents come from: a folder, JSONL, a Hugging Face data set, Python's own library.

Everything is streamed, one document at a time and always in the same order. A document that cannot
be used is yielded too, as a `BadDocument`, so that it is counted and named.

A document's text is kept as it is, line ends included; only a leading byte order mark is dropped.
"""

import dataclasses
import gzip
import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxcoder.errors import ConfigError
from jaxcoder.json_file import open_regular_file, parse_json_object

from .config import SourceConfig
from .file_tree import list_files
from .hugging_face_data import read_rows

MOST_BYTES = 64 << 20
"""Largest document that is read: one of more bytes is counted and left out."""

_NOT_LIBRARY = ("site-packages/**", "dist-packages/**", "**/__pycache__/**")
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


class Document(NamedTuple):
    """One text to train on."""

    name: str
    """Path relative to the folder, or ``file:line``."""
    text: str
    repository: str = ""
    """What a header says after ``<reponame>``; empty: not known."""
    path: str = ""
    """What a header says after ``<filename>``; empty: not known."""


class BadDocument(NamedTuple):
    """A document that is left out."""

    name: str
    reason: str
    """One of a few, to be counted by: "empty", "binary", "not UTF-8", "long line", ..."""
    detail: str = ""
    """Where in the document, or what the operating system said."""


DELIBERATE = frozenset({"empty", "long line"})
"""Reasons that are choices and not faults: they do not count against the error budget."""


def read_documents(data: str, source: SourceConfig) -> Iterator[Document | BadDocument]:
    """All documents of `data`, good and bad, in a fixed order.

    Args:
      data: a folder, a ``.jsonl`` or ``.jsonl.gz`` file, ``hf:NAME`` or ``stdlib``.
      source: which documents to take. `globs` and `exclude` are about files of a folder or of the
        standard library; hidden files and folders, and links to folders, are left out.

    Raises:
      ConfigError: `data` is none of these or cannot be read; raised by the call, except for what is
        found in the middle of a file.
    """
    if data == "stdlib":
        everything = dataclasses.replace(source, exclude=(*source.exclude, *_NOT_LIBRARY))
        return _read_folder(stdlib_folder(), everything, "python/cpython", "Lib/")
    if data.startswith("hf:"):
        return _read_rows(read_rows(data.removeprefix("hf:"), source), source)
    path = Path(data)
    if data and path.is_dir():
        return _read_folder(path, source, path.resolve().name, "")
    if data and path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        return _read_rows(_jsonl_rows(path), source)
    found = "no such file or folder" if not path.exists() else "neither a folder nor a .jsonl file"
    raise ConfigError(
        f"data: {data!r}: {found if data else 'empty'}; expected a folder, a .jsonl or .jsonl.gz "
        "file, hf:NAME of a Hugging Face data set, or stdlib"
    )


def no_document_problem(data: str, source: SourceConfig) -> str:
    """What to say where there is nothing to train on; a preset may have globs of its own."""
    return (
        f"data: {data!r}: no document to train on, expected one at least; check the place, "
        f"source.globs {source.globs} and source.exclude {source.exclude}"
    )


def stdlib_folder() -> Path:
    """The folder of the running Python's own library.

    Raises:
      ConfigError: there is none: some installations keep the library in a zip file.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    if not folder.is_dir():
        raise ConfigError(
            f"data: 'stdlib': {folder} is not a folder; this Python keeps its library elsewhere, "
            "give a folder of code instead"
        )
    return folder


def hold_out(source: SourceConfig, packages: tuple[str, ...]) -> tuple[SourceConfig, SourceConfig]:
    """Split a folder of packages, such as the standard library, in two: for training and to test.

    Args:
      source: which documents to take of the whole.
      packages: names at the top level: of folders, or of modules without ``.py``.

    Returns:
      `source` without the packages, and with nothing but them.
    """
    globs = tuple(glob for name in packages for glob in (f"{name}/**/*.py", f"{name}.py"))
    without = dataclasses.replace(source, exclude=(*source.exclude, *globs))
    return without, dataclasses.replace(source, globs=globs)


def _read_folder(
    folder: Path, source: SourceConfig, repository: str, above: str
) -> Iterator[Document | BadDocument]:
    for relative in list_files(folder, source.globs, source.exclude):
        # A file name need not be UTF-8, but what is stored must be.
        name = relative.encode("utf-8", "backslashreplace").decode()
        try:
            with open_regular_file(folder / relative, error=ConfigError) as (stream, _):
                raw = stream.read(MOST_BYTES + 1)
        except ConfigError as exc:
            yield BadDocument(name, "unreadable", str(exc))
            continue
        yield _checked_bytes(name, raw, source, repository, above + name)


def _checked_bytes(
    name: str, raw: bytes, source: SourceConfig, repository: str, path: str
) -> Document | BadDocument:
    if len(raw) > MOST_BYTES:
        return BadDocument(name, "too large", f"more than {MOST_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        return BadDocument(name, "not UTF-8", f"byte {exc.start}: 0x{raw[exc.start]:02x}")
    return _checked_text(name, text, source, repository, path)


def _checked_text(
    name: str, text: str, source: SourceConfig, repository: str, path: str
) -> Document | BadDocument:
    text = text.removeprefix(_BOM)
    if not text.strip():
        return BadDocument(name, "empty")
    if (offset := text.find("\0")) >= 0:
        return BadDocument(name, "binary", f"NUL at character {offset}")
    if surrogate := re.search("[\ud800-\udfff]", text):
        return BadDocument(name, "not UTF-8", f"lone surrogate at character {surrogate.start()}")
    longest = max((len(line), -number) for number, line in enumerate(text.splitlines(), 1))
    if longest[0] > source.max_line_chars:
        return BadDocument(name, "long line", f"line {-longest[1]}: {longest[0]} characters")
    return Document(name, text, repository, path)


def _read_rows(
    rows: Iterator[tuple[str, dict[str, Any]] | BadDocument], source: SourceConfig
) -> Iterator[Document | BadDocument]:
    """Documents of (name, row); repository and path as StarCoder's data set names them."""
    for row in rows:
        if isinstance(row, BadDocument):
            yield row
            continue
        name, fields = row
        text = fields.get(source.field)
        if source.field not in fields:
            yield BadDocument(name, "missing field", source.field)
        elif not isinstance(text, str):
            kind = type(text).__name__
            yield BadDocument(name, "not a string", f"{source.field}: {kind}")
        else:
            repository = _word(fields.get("max_stars_repo_name"))
            path = _word(fields.get("max_stars_repo_path"))
            yield _checked_text(name, text, source, repository, path)


def _word(value: Any) -> str:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else ""


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]] | BadDocument]:
    number = 0
    with open_regular_file(path, error=ConfigError) as (raw, _):
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            while line := stream.readline(MOST_BYTES + 1):
                number += 1
                name = f"{path.name}:{number}"
                if len(line) > MOST_BYTES:
                    _skip_line(stream, line)
                    yield BadDocument(name, "too large", f"more than {MOST_BYTES} bytes")
                elif line.strip():
                    yield _parsed(name, line.rstrip(b"\r\n"))
        except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
            # How much is lost cannot be counted, so no error budget can allow it.
            raise ConfigError(
                f"{path}:{number + 1}: damaged gzip file ({exc}); everything after it would be "
                "missing. Download or compress it again"
            ) from exc


def _parsed(name: str, line: bytes) -> tuple[str, dict[str, Any]] | BadDocument:
    try:
        return name, parse_json_object(line, name, error=ConfigError)
    except ConfigError as exc:
        return BadDocument(name, "bad JSON", str(exc).removeprefix(f"{name}: "))


def _skip_line(stream: BinaryIO | gzip.GzipFile, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)
