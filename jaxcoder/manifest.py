"""jaxcoder_manifest.json: SHA-256 of every tensor and small file of a checkpoint we wrote.

It finds what shapes cannot: a flipped bit, tensors exchanged, a transposed square weight, a config
or tokenizer from elsewhere. A checkpoint without one loads, unverified.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError
from .hf_names import Array
from .json_file import read_json_object, read_regular_file
from .problems import raise_if_any, shorten
from .safetensors_file import dtype_name
from .safetensors_header import TensorInfo
from .shards import is_plain_file_name

MANIFEST_FILE = "jaxcoder_manifest.json"
FORMAT = 1

_MAX_BYTES = 64 << 20


class Manifest(NamedTuple):
    """Hashes of files by name, and of tensors with shape and dtype by name on disk."""

    files: dict[str, str]
    tensors: dict[str, dict[str, Any]]


def make_manifest(files: Mapping[str, bytes], tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The JSON object that describes small `files` by content and `tensors`, both by name."""
    return {
        "format": FORMAT,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "tensors": {
            name: {
                "sha256": tensor_sha256(array),
                "shape": list(array.shape),
                "dtype": dtype_name(array),
            }
            for name, array in tensors.items()
        },
    }


def tensor_sha256(array: Array) -> str:
    """The SHA-256 of a contiguous array's bytes, in hexadecimal."""
    return hashlib.sha256(array.reshape(-1).view("uint8").data).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`, or None where there is none.

    Raises:
      CheckpointError: it is not a manifest of a format we know.
    """
    path = folder / MANIFEST_FILE
    if not path.exists() and not path.is_symlink():
        return None
    fields = read_json_object(path, limit=_MAX_BYTES, error=CheckpointError)
    version = fields.get("format")
    if type(version) is not int or version != FORMAT:
        remedy = (
            "it was written by a newer jaxcoder, upgrade to read it"
            if type(version) is int and version > FORMAT
            else "restore the file; without it the weights load unverified"
        )
        raise CheckpointError(f"{path}: format is {shorten(version)}, expected {FORMAT}; {remedy}")
    problems = [
        f"{section} is {shorten(fields.get(section))}, expected an object"
        for section in ("files", "tensors")
        if not isinstance(fields.get(section), dict)
    ]
    if not problems:
        problems = _entry_problems(fields["files"], fields["tensors"])
    raise_if_any(problems, path, remedy="restore the file", error=CheckpointError)
    return Manifest(fields["files"], fields["tensors"])


def file_problems(manifest: Manifest, folder: Path, *, needed: set[str]) -> list[str]:
    """What is wrong with the small files of `folder`; the `needed` ones must be listed."""
    problems = [
        f"{MANIFEST_FILE} does not list {name}" for name in sorted(needed - manifest.files.keys())
    ]
    for name, expected in manifest.files.items():
        try:
            content = read_regular_file(folder / name, limit=_MAX_BYTES, error=CheckpointError)
        except CheckpointError as exc:
            problems.append(f"{MANIFEST_FILE} lists {name}, but {exc}")
            continue
        if hashlib.sha256(content).hexdigest() != expected:
            problems.append(
                f"{name} is not the file that {MANIFEST_FILE} describes (SHA-256); restore it, "
                f"or delete {MANIFEST_FILE} to load unverified"
            )
    return problems


def tensor_problems(manifest: Manifest, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Where the names, shapes and dtypes on disk are not those of the manifest."""
    problems = [
        f"{name!r} is in {MANIFEST_FILE} but not in the weights"
        for name in manifest.tensors
        if name not in tensors
    ]
    for name, info in tensors.items():
        entry = manifest.tensors.get(name)
        if entry is None:
            problems.append(f"{name!r} is in the weights but not in {MANIFEST_FILE}")
        elif (entry["dtype"], entry["shape"]) != (info.dtype, list(info.shape)):
            problems.append(
                f"{name!r} is {info.dtype} {list(info.shape)}, but {MANIFEST_FILE} says "
                f"{entry['dtype']} {shorten(entry['shape'])}"
            )
    return problems


def hash_problem(manifest: Manifest, name: str, array: Array) -> str | None:
    """Whether the data of one tensor is not what the manifest describes."""
    if tensor_sha256(array) == manifest.tensors[name]["sha256"]:
        return None
    return f"{name!r}: its data is not what {MANIFEST_FILE} describes (SHA-256)"


def _entry_problems(files: dict[str, Any], tensors: dict[str, Any]) -> list[str]:
    problems = [
        f"files has {shorten(name)}: {shorten(value)}, expected a plain file name and a SHA-256"
        for name, value in files.items()
        if not is_plain_file_name(name) or not isinstance(value, str)
    ]
    problems += [
        f"tensors has {shorten(name)}: {shorten(entry)}, expected sha256, shape and dtype"
        for name, entry in tensors.items()
        if not isinstance(entry, dict) or entry.keys() != {"sha256", "shape", "dtype"}
    ]
    return problems
