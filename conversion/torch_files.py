"""pytorch_model.bin, single or sharded: pickled tensors, read without running what is pickled.

The only file that opens a pickle, and only through ``torch.load(weights_only=True)``, whose
unpickler knows tensors and containers and refuses every other name. What could make a small file
expensive, compression and shapes without data, is refused before.
"""

import functools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes

from jaxcoder.errors import CheckpointError
from jaxcoder.hf_names import Array, is_mask_buffer
from jaxcoder.json_file import open_regular_file, read_json_object
from jaxcoder.problems import raise_if_any, shorten
from jaxcoder.shards import checked_weight_map

from .layouts import LazyTensor

SINGLE_FILE = "pytorch_model.bin"
INDEX_FILE = "pytorch_model.bin.index.json"

_MAX_INDEX_BYTES = 64 << 20
_UNKNOWN_GLOBAL = re.compile(r"GLOBAL (\S+)")


def has_torch_files(folder: Path) -> bool:
    """Whether `folder` holds PyTorch's pickled weights."""
    return any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE))


def read_torch_files(folder: Path) -> dict[str, LazyTensor]:
    """Every tensor in the pickled weights of `folder`, mapped into memory and not yet read.

    Raises:
      CheckpointError: a file that is not such weights, or would run code, or files that the index
        does not describe.
      ValueError: PyTorch is not installed.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}, expected one of them; "
            "move the one that is not meant away"
        )
    if single.exists():
        return _load(single)
    fields = read_json_object(index, limit=_MAX_INDEX_BYTES, error=CheckpointError)
    listed = checked_weight_map(fields, index, suffix=".bin")
    tensors: dict[str, LazyTensor] = {}
    problems = []
    for file_name in sorted(set(listed.values())):
        held = _load(folder / file_name)
        expected = {name for name, file in listed.items() if file == file_name}
        problems += [
            f"weight_map has {name!r} in {file_name!r}, but that shard does not hold it"
            for name in sorted(expected - held.keys())
        ]
        problems += [
            f"shard {file_name} holds {name!r}, which weight_map does not list for it"
            for name in sorted(held.keys() - expected)
        ]
        tensors |= held
    remedy = "download the checkpoint again"
    raise_if_any(problems, index, remedy=remedy, error=CheckpointError)
    return tensors


def _load(path: Path) -> dict[str, LazyTensor]:
    _check_archive(path)
    torch = _import_torch(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    # Exception, because a damaged file ends in any of a dozen errors of pickle, zip and torch.
    except Exception as exc:
        raise CheckpointError(f"{path}: {_explain(exc)}") from exc
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a dict: tensor name -> tensor; "
            "save `model.state_dict()`"
        )
    remedy = "save `model.state_dict()` alone, in float32, bfloat16 or float16"
    raise_if_any(_content_problems(content, torch), path, remedy=remedy, error=CheckpointError)
    return {
        name: LazyTensor(tuple(tensor.shape), functools.partial(_to_numpy, tensor))
        for name, tensor in content.items()
    }


def _check_archive(path: Path) -> None:
    """Refuse what torch.save of PyTorch 1.6 or later does not write, before torch sees it."""
    with open_regular_file(path, error=CheckpointError) as (file, status):
        if status.st_size == 0:
            raise CheckpointError(f"{path}: an empty file; download it again")
        if not zipfile.is_zipfile(file):
            file.seek(0)
            start = file.read(16)
            raise CheckpointError(
                f"{path}: begins with {start!r}, expected the zip archive that torch.save writes; "
                "download it again, or write a file from before PyTorch 1.6 anew with torch.save"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                packed = [
                    entry.filename
                    for entry in archive.infolist()
                    if entry.compress_type != zipfile.ZIP_STORED
                ]
        except (zipfile.BadZipFile, OSError, ValueError) as exc:
            raise CheckpointError(
                f"{path}: a damaged zip archive ({exc}); download it again"
            ) from exc
    if packed:
        raise CheckpointError(
            f"{path}: entry {shorten(packed[0])} is compressed, expected it stored as torch.save "
            "does; it is not unpacked here, do not trust this checkpoint"
        )


def _import_torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError as exc:
        raise ValueError(
            f"{path}: pickled weights are read by PyTorch, which is not installed; "
            "run `pip install torch`, or get the checkpoint's safetensors"
        ) from exc
    return torch


def _explain(exc: Exception) -> str:
    """One line of our own: torch's advice is to load with weights_only=False."""
    foreign = _UNKNOWN_GLOBAL.search(str(exc))
    if foreign:
        return (
            f"wants {shorten(foreign[1])} called, expected tensors and nothing else: it could run "
            "code and was not loaded; do not trust this checkpoint, get its safetensors"
        )
    first_line = str(exc).partition("\n")[0]
    return (
        f"torch cannot read it ({type(exc).__name__}: {shorten(first_line, 200)}); "
        "download it again, or get the checkpoint's safetensors"
    )


def _content_problems(content: Mapping[Any, Any], torch: ModuleType) -> list[str]:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    problems = []
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            problems.append(f"{shorten(name)} is a {type(tensor).__name__}, expected a tensor")
        elif tensor.layout != torch.strided or tensor.device.type != "cpu":
            problems.append(f"{name!r} is {tensor.layout} on {tensor.device}, expected it dense")
        elif tensor.dtype not in dtypes and not is_mask_buffer(name):
            problems.append(f"{name!r} is {tensor.dtype}, expected one of {dtypes}")
        elif (stored := tensor.untyped_storage().nbytes()) < tensor.nbytes:
            problems.append(f"{name!r} claims {tensor.nbytes} bytes, but {stored} are stored")
    return problems


def _to_numpy(tensor: Any) -> Array:
    """The tensor's own bits; the data of a contiguous one stays where it is mapped."""
    import torch

    dense = tensor.detach().contiguous()
    if dense.dtype == torch.bfloat16:
        # NumPy lacks bfloat16, so that torch hands the bits over as integers.
        return dense.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return dense.numpy()
