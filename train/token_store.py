"""A folder of token ids, as memory-mapped files with a manifest: how it is written and opened.

``tokens.bin`` holds the ids of all documents one after the other, little-endian, without end of
text; ``documents.npz`` where each begins and what is known of it; ``names.json`` their names;
``manifest.json`` the size and SHA-256 of the others, what the ids were made from, and counts.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcoder.errors import ConfigError
from jaxcoder.json_file import json_bytes, read_json_object, read_regular_file

_FORMAT = 1
_TOKENS, _DOCUMENTS, _NAMES = "tokens.bin", "documents.npz", "names.json"
_MANIFEST = "manifest.json"
_REMEDY = "delete the folder, and it is made anew"


class TokenStore(NamedTuple):
    """Tokenised documents; read one with `document_ids`."""

    tokens: np.ndarray
    """uint16 or uint32 [total]: a memory map of all ids; check before use, as `document_ids`."""
    starts: np.ndarray
    """int64 [documents + 1]: where each document begins in `tokens`; the last is the total."""
    names: tuple[str, ...]
    """Names of the documents, as `sources.Document` has them."""
    text_bytes: np.ndarray
    """int64 [documents]: bytes of each text in UTF-8, its header not among them."""
    header_lengths: np.ndarray
    """int64 [documents]: ids at a document's front that are its header; 0: it has none."""
    checksums: np.ndarray
    """uint32 [documents]: CRC-32 of each document's part of the file."""
    is_validation: np.ndarray
    """bool [documents]: held out for validation."""
    repeats: np.ndarray
    """int64 [documents]: an earlier document that this one nearly repeats, or -1."""
    report: dict[str, Any]
    """Counts, as `store.open_store` documents them, and the fingerprint."""


def document_ids(store: TokenStore, document: int) -> np.ndarray:
    """The ids of one document: int32 [n], its header first, no end of text.

    Raises:
      ConfigError: the file of tokens was removed, cut or changed since it was opened.
    """
    start, stop = store.starts[document], store.starts[document + 1]
    name = store.tokens.filename if isinstance(store.tokens, np.memmap) else None
    path = None if name is None else Path(name)
    if path is not None:
        # Reading a mapped page that a shorter file no longer has would kill the process.
        size = path.stat().st_size if path.exists() else 0
        if size != store.tokens.nbytes:
            raise ConfigError(
                f"{path}: {size} bytes, had {store.tokens.nbytes} when it was opened; it was "
                f"changed while in use. Stop what writes there; {_REMEDY} by the next start"
            )
    ids = store.tokens[start:stop]
    if zlib.crc32(ids.tobytes()) != store.checksums[document]:
        raise ConfigError(
            f"{path or 'tokens'}: document {document} ({store.names[document]}) is not what was "
            f"stored; the file was changed while in use, or the disk fails; {_REMEDY}"
        )
    return ids.astype(np.int32)


def token_type(vocab_size: int) -> np.dtype:
    """The type ids are stored as: 2 bytes where they fit, else 4."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class StoreWriter:
    """Writes ``tokens.bin`` document by document, and the other files at the end.

    A class, since a write in progress is a file that is open and counts that grow.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """Begin to write into the empty `folder`."""
        self._folder = folder
        self._type = token_type(vocab_size)
        self._vocab_size = vocab_size
        self._file = (folder / _TOKENS).open("wb")
        self._starts, self._checksums = [0], []
        self._text_bytes, self._header_lengths, self._validation = [], [], []
        self._names: list[str] = []

    def add(
        self, name: str, ids: np.ndarray, *, text_bytes: int, header: int, is_validation: bool
    ) -> None:
        """Append one document; `header` of its ids, int [n], are the header's."""
        raw = ids.astype(self._type).tobytes()
        self._file.write(raw)
        self._starts.append(self._starts[-1] + ids.size)
        self._checksums.append(zlib.crc32(raw))
        self._text_bytes.append(text_bytes)
        self._header_lengths.append(header)
        self._validation.append(is_validation)
        self._names.append(name)

    def close(self) -> None:
        """Close the file of tokens; done by `finish` too."""
        self._file.close()

    def finish(
        self, fingerprint: Mapping[str, str], *, repeats: np.ndarray, report: Mapping[str, Any]
    ) -> None:
        """Write what belongs to the tokens; the manifest comes last."""
        self.close()
        np.savez(
            self._folder / _DOCUMENTS,
            starts=np.array(self._starts, np.int64),
            checksums=np.array(self._checksums, np.uint32),
            text_bytes=np.array(self._text_bytes, np.int64),
            header_lengths=np.array(self._header_lengths, np.int64),
            is_validation=np.array(self._validation, np.bool_),
            repeats=repeats,
        )
        (self._folder / _NAMES).write_text(json.dumps(self._names), encoding="utf-8")
        files = {
            name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for name in (_TOKENS, _DOCUMENTS, _NAMES)
            for path in [self._folder / name]
        }
        manifest = {
            "format": _FORMAT,
            "fingerprint": dict(fingerprint),
            "type": self._type.str,
            "vocab_size": self._vocab_size,
            "files": files,
            "report": dict(report),
        }
        (self._folder / _MANIFEST).write_bytes(json_bytes(manifest))


def open_folder(folder: Path, fingerprint: Mapping[str, str], vocab_size: int) -> TokenStore:
    """Open a folder that `StoreWriter` wrote, after checking every byte of it.

    Args:
      folder: it.
      fingerprint: what the ids must have been made from.
      vocab_size: of the tokenizer; every id must be below it.

    Raises:
      ConfigError: a file is missing or changed, or the ids were made from something else.
    """
    manifest = read_json_object(folder / _MANIFEST, error=ConfigError)
    files, report = manifest.get("files"), manifest.get("report")
    expected = {
        "format": _FORMAT,
        "fingerprint": dict(fingerprint),
        "type": token_type(vocab_size).str,
        "vocab_size": vocab_size,
    }
    for name, value in expected.items():
        if manifest.get(name) != value:
            raise ConfigError(
                f"{folder / _MANIFEST}: {name}: {manifest.get(name)}, expected {value}; these "
                f"tokens were made by another tokenizer, setting or version; {_REMEDY}"
            )
    if not isinstance(files, dict) or not isinstance(report, dict):
        raise ConfigError(
            f"{folder / _MANIFEST}: fields {', '.join(manifest)}, expected files and report to be "
            f"objects; {_REMEDY}"
        )
    for name in (_TOKENS, _DOCUMENTS, _NAMES):
        _check_file(folder / name, files.get(name))
    tokens = np.memmap(folder / _TOKENS, dtype=token_type(vocab_size), mode="r")
    if (largest := int(tokens.max())) >= vocab_size:
        raise ConfigError(
            f"{folder / _TOKENS}: holds id {largest}, expected ids below {vocab_size}; {_REMEDY}"
        )
    raw_names = read_regular_file(folder / _NAMES, limit=1 << 34, error=ConfigError)
    with np.load(folder / _DOCUMENTS, allow_pickle=False) as arrays:
        return TokenStore(
            tokens=tokens,
            starts=arrays["starts"],
            names=tuple(json.loads(raw_names)),
            text_bytes=arrays["text_bytes"],
            header_lengths=arrays["header_lengths"],
            checksums=arrays["checksums"],
            is_validation=arrays["is_validation"],
            repeats=arrays["repeats"],
            report=report,
        )


def _check_file(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: not in {_MANIFEST}, expected an entry; {_REMEDY}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; {_REMEDY}")
    size = os.path.getsize(path)
    if size != entry.get("bytes"):
        raise ConfigError(f"{path}: {size} bytes, expected {entry.get('bytes')}; {_REMEDY}")
    if (digest := _sha256(path)) != entry.get("sha256"):
        raise ConfigError(f"{path}: SHA-256 {digest}, expected {entry.get('sha256')}; {_REMEDY}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
