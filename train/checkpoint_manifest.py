"""manifest.json of a training checkpoint: size and SHA-256 of every file, and of itself.

It finds what file formats do not: a flipped bit, a file cut short, missing, or from elsewhere.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxcoder.errors import CheckpointError
from jaxcoder.json_file import json_bytes, parse_json_object, read_regular_file
from jaxcoder.problems import raise_if_any, shorten

MANIFEST_FILE = "manifest.json"
FORMAT = 1

_MAX_BYTES = 64 << 20


def manifest_bytes(folder: Path, fields: Mapping[str, Any]) -> bytes:
    """The manifest of all files in `folder`, with `fields` of the caller's.

    Its last field is the SHA-256 of all before it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "format": FORMAT,
        **fields,
        "files": {path.relative_to(folder).as_posix(): _describe(path) for path in files},
    }
    return _sealed(content, _digest(content))


def read_verified(folder: Path) -> dict[str, Any]:
    """The fields of the manifest in `folder`, all of whose files were read and hashed.

    Raises:
      CheckpointError: names each file that is missing, damaged or unreadable.
    """
    fields = _read(folder / MANIFEST_FILE)
    problems = []
    for name, expected in fields["files"].items():
        try:
            found = _describe(folder / name)
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as exc:
            problems.append(f"{name} cannot be read ({exc.strerror})")
        else:
            if found["bytes"] != expected["bytes"]:
                problems.append(f"{name} has {found['bytes']} bytes, expected {expected['bytes']}")
            elif found != expected:
                problems.append(f"{name} is not what was written (SHA-256)")
    raise_if_any(problems, folder, remedy="restore the files", error=CheckpointError)
    return fields


def _read(path: Path) -> dict[str, Any]:
    raw = read_regular_file(path, limit=_MAX_BYTES, error=CheckpointError)
    fields = parse_json_object(raw, path, error=CheckpointError)
    version = fields.get("format")
    if type(version) is int and version > FORMAT:
        raise CheckpointError(
            f"{path}: format is {shorten(version)}, expected {FORMAT}; it was written by newer "
            "code, update to read it"
        )
    digest = fields.pop("sha256", None)
    # The bytes too, so that no flipped bit goes unseen, not even one in a space.
    if digest != _digest(fields) or raw != _sealed(fields, digest):
        raise CheckpointError(f"{path}: is not what was written (SHA-256); restore the file")
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(fields)).hexdigest()


def _sealed(fields: Mapping[str, Any], digest: str) -> bytes:
    return json_bytes({**fields, "sha256": digest})


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}
