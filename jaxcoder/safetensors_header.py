"""Strict reading of a .safetensors header: every byte accounted for before a tensor is read.

The library behind accepts a repeated key, odd names and no limit on the number of tensors, and its
errors name neither file nor tensor; so the header is checked here first.

Source of the format: the safetensors README (8 bytes of header length, JSON header, data).
"""

from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError
from .hf_names import is_mask_buffer
from .json_file import parse_json_object
from .problems import raise_if_any, shorten

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_TENSORS = 100_000
"""Twice what the deepest model that `ModelConfig` allows has."""

_MAX_SEPARATORS = 16 * MAX_TENSORS
"""Colons and commas: a tensor has 6 and one for each dimension, and metadata may have some."""

MAX_NAME_LENGTH = 512

WEIGHT_DTYPES = ("F32", "F16", "BF16")

_ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2} | {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8
}  # fmt: skip

_MAX_BYTES = 1 << 62

_DAMAGED = "damaged, or not such a checkpoint; download or convert it again"


class TensorInfo(NamedTuple):
    """One entry of a header: safetensors dtype, shape, and its bytes of the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(
    raw: bytes, *, data_bytes: int, path: Path
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata in the JSON header `raw` of a file with `data_bytes` of data.

    Raises:
      CheckpointError: anything that is not a header as the format and this project know it; all
        tensors at fault are listed.
    """
    # Before parsing, which would take seconds and gigabytes. JSON has no escape for either outside
    # of strings, so no spelling hides them.
    separators = raw.count(b":") + raw.count(b",")
    if separators > _MAX_SEPARATORS:
        raise CheckpointError(
            f"{path}: header has {separators} colons and commas, expected at most "
            f"{_MAX_SEPARATORS}, more than {MAX_TENSORS} tensors need; {_DAMAGED}"
        )
    fields = parse_json_object(raw, f"{path}: header", error=CheckpointError)
    if len(fields) > MAX_TENSORS:
        raise CheckpointError(
            f"{path}: header lists {len(fields)} tensors, expected at most {MAX_TENSORS}; "
            f"{_DAMAGED}"
        )
    metadata = fields.pop("__metadata__", {})
    problems = _metadata_problems(metadata)
    tensors: dict[str, TensorInfo] = {}
    for name, entry in fields.items():
        found = _name_problem(name) or _entry_problem(name, entry)
        if found:
            problems.append(f"tensor {shorten(name)}: {found}")
        else:
            tensors[name] = TensorInfo(
                entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]
            )
    raise_if_any(problems, path, remedy=_DAMAGED, error=CheckpointError)
    raise_if_any(_range_problems(tensors, data_bytes), path, remedy=_DAMAGED, error=CheckpointError)
    return tensors, metadata


def _metadata_problems(metadata: object) -> list[str]:
    if not isinstance(metadata, dict):
        return [f"header: __metadata__ is {shorten(metadata)}, expected an object of strings"]
    return [
        f"header: __metadata__ {shorten(key)} is {shorten(value)}, expected a string"
        for key, value in metadata.items()
        if not isinstance(value, str)
    ]


def _name_problem(name: str) -> str | None:
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        return f"its name has {len(name)} characters, expected 1 to {MAX_NAME_LENGTH}"
    if not (name.isascii() and name.isprintable()):
        return "its name has a character that is not printable ASCII"
    if "/" in name or "\\" in name or ".." in name:
        return "its name has a path separator or '..'"
    return None


def _entry_problem(name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return f"its entry is {shorten(entry)}, expected dtype, shape and data_offsets"
    return (
        _dtype_problem(name, entry["dtype"])
        or _shape_problem(entry["shape"])
        or _offsets_problem(entry)
    )


def _dtype_problem(name: str, dtype: Any) -> str | None:
    supported = isinstance(dtype, str) and (
        dtype in WEIGHT_DTYPES or (dtype in _ITEM_SIZE and is_mask_buffer(name))
    )
    if supported:
        return None
    return f"dtype {shorten(dtype)} is not supported, expected one of {', '.join(WEIGHT_DTYPES)}"


def _shape_problem(shape: Any) -> str | None:
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        return f"shape {shorten(shape)}, expected a list of integers from 0"
    return None


def _offsets_problem(entry: dict[str, Any]) -> str | None:
    offsets = entry["data_offsets"]
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(offset) is not int or offset < 0 for offset in offsets)
    ):
        return f"data_offsets {shorten(offsets)}, expected two integers from 0"
    begin, end = offsets
    if begin > end:
        return f"data_offsets begin at {begin} but end at {end}"
    needed = _ITEM_SIZE[entry["dtype"]]
    for size in sorted(entry["shape"]):  # a zero first, so that it wins over an overflow
        needed *= size
        if needed > _MAX_BYTES:
            return f"shape {shorten(entry['shape'])} overflows: more than {_MAX_BYTES} bytes"
    if end - begin != needed:
        return (
            f"data_offsets {begin} to {end} are {end - begin} bytes, "
            f"but dtype {entry['dtype']} and shape {shorten(entry['shape'])} need {needed}"
        )
    return None


def _range_problems(tensors: dict[str, TensorInfo], data_bytes: int) -> list[str]:
    """Overlaps, holes, and what is past or short of the end of the data section."""
    problems = []
    position, previous = 0, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.begin != position:
            kind = "overlaps" if info.begin < position else "leaves a hole after"
            problems.append(
                f"tensor {name!r}: data {info.begin} to {info.end} {kind} {previous}, "
                f"which ends at {position}"
            )
        if info.end > data_bytes:
            problems.append(
                f"tensor {name!r}: data {info.begin} to {info.end} passes the end of the file: "
                f"it holds {data_bytes} bytes of data (cut off?)"
            )
        position, previous = max(position, info.end), f"tensor {name!r}"
    if position < data_bytes:
        problems.append(
            f"{data_bytes - position} bytes follow the data of {previous}, which ends at "
            f"{position} of {data_bytes}"
        )
    return problems
