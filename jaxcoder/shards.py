"""The weights of a folder: one model.safetensors, or shards and the index that lists them.

Nothing outside the folder is opened, and no file but .safetensors and the index. This module knows
no config: whether the tensors are the right ones is for `tensor_checks`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError
from .hf_names import Array
from .json_file import read_json_object
from .problems import raise_if_any, shorten
from .safetensors_file import Header, read_header
from .safetensors_header import TensorInfo

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

CONVERT_HINT = "run `python -m conversion convert SRC DST`"

_CODE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib")

_MAX_INDEX_BYTES = 64 << 20


class Weights(NamedTuple):
    """The checked headers of a folder's weight files, and the file of each tensor."""

    headers: dict[Path, Header]
    file_of: dict[str, Path]
    index: Path | None

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its name on disk."""
        return {name: self.headers[file].tensors[name] for name, file in self.file_of.items()}


def find_weights(folder: Path) -> Weights:
    """Read and check the headers of the weights in `folder`, and the index if there is one.

    Raises:
      CheckpointError: no weights, weights in a format that can run code (never opened), or files
        and index that contradict each other; all problems are listed.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    has_single, has_index = _is_present(single), _is_present(index)
    if has_single and has_index:
        raise CheckpointError(
            f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}, expected one of them; "
            "move the one that is not meant away"
        )
    if has_single:
        header = read_header(single)
        return Weights({single: header}, dict.fromkeys(header.tensors, single), None)
    if has_index:
        return _read_shards(folder, index)
    raise CheckpointError(f"{folder}: {_what_instead(folder)}")


def shard_file_name(number: int, count: int) -> str:
    """The name of shard `number` (from 1) of `count`, as transformers writes it."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def plan_shards(tensors: Mapping[str, Array], max_shard_bytes: int | None) -> list[list[str]]:
    """The names of each shard, in order; a tensor above the limit has a shard to itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, array in tensors.items():
        if max_shard_bytes is not None and shards[-1] and filled + array.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += array.nbytes
    return shards


def _is_present(path: Path) -> bool:
    # A dangling link counts as there, so that it is named instead of passed over.
    return path.exists() or path.is_symlink()


def _read_shards(folder: Path, index: Path) -> Weights:
    fields = read_json_object(index, limit=_MAX_INDEX_BYTES, error=CheckpointError)
    listed = checked_weight_map(fields, index, suffix=".safetensors")
    remedy = "download or convert the checkpoint again"
    headers: dict[Path, Header] = {}
    problems = []
    for file_name in sorted(set(listed.values())):
        path = folder / file_name
        if not _is_present(path):
            entry = next(name for name, file in listed.items() if file == file_name)
            problems.append(f"shard {file_name!r} is missing; weight_map lists it for {entry!r}")
            continue
        try:
            headers[path] = read_header(path)
        except CheckpointError as exc:
            problems.append(str(exc))
    raise_if_any(problems, index, remedy=remedy, error=CheckpointError)

    problems = [
        f"weight_map has {name!r} in {file!r}, but that shard does not hold it"
        for name, file in listed.items()
        if name not in headers[folder / file].tensors
    ]
    seen: dict[str, str] = {}
    for path, header in headers.items():
        for name in header.tensors:
            if name in seen:
                problems.append(f"tensor {name!r} is in two shards, {seen[name]} and {path.name}")
            elif name not in listed:
                problems.append(f"shard {path.name} holds {name!r}, which weight_map does not list")
            seen[name] = path.name
    problems += _total_size_problem(fields.get("metadata", {}), headers)
    raise_if_any(problems, index, remedy=remedy, error=CheckpointError)
    return Weights(headers, {name: folder / file for name, file in listed.items()}, index)


def checked_weight_map(fields: dict[str, Any], index: Path, *, suffix: str) -> dict[str, str]:
    """The weight_map of an index file: tensor name -> plain name of a file that ends in `suffix`.

    Raises:
      CheckpointError: not such a map, or an entry that could lead out of the folder.
    """
    listed = fields.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(
            f"{index}: weight_map is {shorten(listed)}, expected an object: tensor name -> file "
            "name; download it again"
        )
    problems = [
        f"weight_map has {shorten(name)} in {shorten(file)}, "
        f"expected the plain name of a {suffix} file in this folder"
        for name, file in listed.items()
        if not is_plain_file_name(file) or not file.endswith(suffix)
    ]
    raise_if_any(problems, index, remedy="do not trust this checkpoint", error=CheckpointError)
    return listed


def is_plain_file_name(name: object) -> bool:
    """Whether `name` can only mean a file directly in the folder it is joined to."""
    return (
        isinstance(name, str)
        and 1 <= len(name) <= 255
        and name.isascii()
        and name.isprintable()
        and not any(part in name for part in ("/", "\\", "..", ":"))
    )


def _total_size_problem(metadata: Any, headers: Mapping[Path, Header]) -> list[str]:
    if not isinstance(metadata, dict):
        return [f"metadata is {shorten(metadata)}, expected an object"]
    held = sum(
        info.end - info.begin for header in headers.values() for info in header.tensors.values()
    )
    total = metadata.get("total_size", held)
    if total == held and not isinstance(total, bool):
        return []
    return [f"metadata.total_size is {shorten(total)}, but the shards hold {held} bytes of tensors"]


def _what_instead(folder: Path) -> str:
    """Why a folder without weights of ours cannot be loaded."""
    names = sorted(entry.name for entry in folder.iterdir())
    code = [name for name in names if name.lower().endswith(_CODE_SUFFIXES)]
    if code:
        return (
            f"holds weights only as {code[0]}, a format that can run code when it is read; it was "
            f"not opened. Expected {SINGLE_FILE} or {INDEX_FILE}: {CONVERT_HINT}"
        )
    others = [name for name in names if name.lower().endswith(".safetensors")]
    found = f"found {', '.join(others[:5])} instead" if others else "found no weights"
    return (
        f"expected {SINGLE_FILE}, or {INDEX_FILE} and its shards, beside config.json; {found}. "
        "Check the path, or download the checkpoint again"
    )
