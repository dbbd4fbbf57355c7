"""One .safetensors file: a strict header first, then tensors through the safetensors library.

A file is bounded and recognised before the library sees it; whatever the library raises comes out
as one `CheckpointError` with the path. This module knows no config and no JAX.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16, which safetensors asks it for
import numpy as np

from .durable import sync_to_disk
from .errors import CheckpointError
from .json_file import open_regular_file
from .safetensors_header import MAX_HEADER_BYTES, TensorInfo, parse_header

_PREFIX_BYTES = 8

_MAGIC = (
    (b"version https://git-lfs", "a git-LFS pointer; run `git lfs pull` to fetch the file itself"),
    (b"<", "an HTML or XML page; a download got a web page (log in, or check the address)"),
    (b"\x1f\x8b", "gzip data; it is not unpacked here, unpack it yourself if you trust it"),
    (
        b"PK\x03\x04",
        "a zip archive, as torch.save writes; run `python -m conversion convert SRC DST`",
    ),
    (
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a Python pickle; it is never opened, run `python -m conversion convert SRC DST`",
    ),
    (b"\x93NUMPY", "a NumPy array; expected a .safetensors file"),
    (b"\x89HDF", "an HDF5 file; expected a .safetensors file"),
    (b"GGUF", "a GGUF file; expected a .safetensors file"),
    (b"{", "JSON text; expected a .safetensors file"),
)

_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Header(NamedTuple):
    """What a file says of itself, and which file it was (device, inode, size, change time)."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: tuple[int, ...]


def read_header(path: Path) -> Header:
    """The checked header of a .safetensors file; its data is not read.

    Raises:
      CheckpointError: not a regular file, not safetensors (its kind is named), or a header that
        does not account for every byte; see `parse_header`.
    """
    with open_regular_file(path, error=CheckpointError) as (file, status):
        size = status.st_size
        start = file.read(512)
        length = int.from_bytes(start[:_PREFIX_BYTES], "little")
        plausible = size >= _PREFIX_BYTES and length <= min(MAX_HEADER_BYTES, size - _PREFIX_BYTES)
        if not plausible or start[_PREFIX_BYTES : _PREFIX_BYTES + 1] != b"{":
            raise CheckpointError(f"{path}: {_describe(start, size, length)}")
        file.seek(_PREFIX_BYTES)
        raw = file.read(length)
    tensors, metadata = parse_header(raw, data_bytes=size - _PREFIX_BYTES - length, path=path)
    return Header(tensors, metadata, _identity(status))


@contextlib.contextmanager
def open_tensors(path: Path, header: Header) -> Iterator[Callable[[str], np.ndarray]]:
    """Yield a function that reads a tensor of the file by name, as a copy in memory.

    `header` is what `read_header` said of it. The library's "pread" back end is used: under its
    default, a memory map, a file cut off during loading kills the process with SIGBUS.

    Raises:
      CheckpointError: the file was replaced or changed meanwhile, or the library failed.
    """
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        with _library_errors(path, "cannot be opened"):
            handle = stack.enter_context(safe_open(path, framework="np", backend="pread"))

        def read(name: str) -> np.ndarray:
            with _library_errors(path, f"tensor {name!r} cannot be read"):
                array = handle.get_tensor(name)
                status = os.stat(path)
            if _identity(status) != header.identity:
                raise CheckpointError(
                    f"{path}: the file changed while tensor {name!r} was read; "
                    "let the writer finish, then load again"
                )
            return array

        yield read


def read_tensor(path: Path, name: str) -> np.ndarray:
    """One tensor of a file, which is checked first; see `read_header` and `open_tensors`."""
    header = read_header(path)
    if name not in header.tensors:
        raise CheckpointError(
            f"{path}: has no tensor {name!r}; expected one of its {len(header.tensors)}, "
            "see `read_header`"
        )
    with open_tensors(path, header) as read:
        return read(name)


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write float32, float16 or bfloat16 arrays of any memory layout; the file is synced to disk.

    Its mode follows the umask. `metadata` is ``{"format": "pt"}`` where not given, which
    transformers asks for.

    Raises:
      ValueError: an array of another dtype.
      OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    for name, array in tensors.items():
        if array.dtype.name not in _DTYPE_NAMES:
            raise ValueError(
                f"{path}: tensor {name!r} is {array.dtype.name}, "
                f"expected one of {', '.join(_DTYPE_NAMES)}; cast it first"
            )
    # safetensors 0.8.0 writes the memory of a transposed view as it lies, under the view's shape.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(contiguous, path, metadata=dict(metadata or {"format": "pt"}))
    except SafetensorError as exc:
        raise OSError(f"{path}: {exc}") from exc
    path.chmod(mode)  # the library leaves 0600
    sync_to_disk(path)


def dtype_name(array: np.ndarray) -> str:
    """The safetensors name of an array's dtype: F32, F16 or BF16."""
    return _DTYPE_NAMES[array.dtype.name]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _describe(start: bytes, size: int, length: int) -> str:
    """Why the first bytes of a file are not those of a safetensors file."""
    if size == 0:
        return "an empty file (too short: 0 of at least 8 bytes); download it again"
    if size < _PREFIX_BYTES:
        return f"too short: {size} of at least 8 bytes; download it again"
    brace_follows = start[_PREFIX_BYTES : _PREFIX_BYTES + 1] in (b"{", b"")
    # A length's low byte may look like a magic number, but then a brace follows the length.
    if length > MAX_HEADER_BYTES or not brace_follows:
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        for magic, kind in _MAGIC:
            if start.startswith(magic) or text.startswith(magic):
                return f"holds {kind}"
    if length > MAX_HEADER_BYTES:
        return (
            f"the length prefix says a header of {length} bytes, the limit is {MAX_HEADER_BYTES}, "
            f"the file has {size}; it is damaged or not a .safetensors file"
        )
    if length > size - _PREFIX_BYTES:
        return (
            f"the length prefix says a header of {length} bytes, the file has {size}; "
            "it is cut off or not a .safetensors file, download it again"
        )
    return (
        f"the header of {length} bytes does not begin with '{{' (offset 0); "
        "it is damaged or not a .safetensors file"
    )


@contextlib.contextmanager
def _library_errors(path: Path, what: str) -> Iterator[None]:
    """Turn everything a foreign loader raises, a panic too, into one error with the path."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:
        raise CheckpointError(
            f"{path}: {what} ({type(exc).__name__}: {exc}); download or convert it again"
        ) from exc
