"""Reading a checkpoint in any layout that we know: safetensors or PyTorch's .bin; see `layouts`."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxcoder.checkpoint import CONFIG_FILE, load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.hf_names import EMBEDDING, HEAD, Array, Params, insert, iter_params
from jaxcoder.json_file import read_json_object
from jaxcoder.problems import raise_if_any
from jaxcoder.safetensors_file import read_tensor
from jaxcoder.shards import INDEX_FILE, SINGLE_FILE, find_weights
from jaxcoder.tensor_checks import cast_problem, head_problem, match_tensors, value_problem

from . import torch_files
from .layouts import Layout, LazyTensor, find_layout, is_canonical

_REMEDY = "check the folder, or download the checkpoint again"


def read_source(folder: Path, *, dtype: str | None = None) -> tuple[ModelConfig, Params]:
    """Read the checkpoint in `folder`; safetensors are preferred where both formats are there.

    Args:
      folder: config.json, and weights single or sharded.
      dtype: "float32", "bfloat16" or "float16" to cast every weight; None keeps what is stored.

    Returns:
      The config of a layout that `save_checkpoint` writes, and the tree of `hf_names`.

    Raises:
      ConfigError: config.json is missing, damaged, or of another architecture.
      CheckpointError: weights missing, damaged, not those of the config, or not finite.
      ValueError: the weights need PyTorch, which is not installed.
    """
    fields = read_json_object(folder / CONFIG_FILE, error=ConfigError)
    if (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists():
        weights = find_weights(folder)
        if is_canonical(fields, weights.tensors):
            return load_checkpoint(folder, dtype=dtype)
        tensors = {
            name: LazyTensor(
                info.shape, functools.partial(read_tensor, weights.file_of[name], name)
            )
            for name, info in weights.tensors.items()
        }
    elif torch_files.has_torch_files(folder):
        tensors = torch_files.read_torch_files(folder)
    else:
        raise CheckpointError(f"{folder}: {_what_instead(folder)}")
    layout = find_layout(fields, tensors, source=folder)
    return layout.model, _read_params(layout, folder, dtype)


def _read_params(layout: Layout, folder: Path, dtype: str | None) -> Params:
    """The checks of `load_checkpoint`, for tensors that are not in files of its format."""
    matched = match_tensors(layout.tensors, layout.stored)
    raise_if_any(matched.problems, folder, remedy=_REMEDY, error=CheckpointError)
    on_disk = {name: layout.tensors[found] for name, found in matched.name_on_disk.items()}
    if layout.stored.tie_word_embeddings and HEAD in on_disk:
        different = head_problem(on_disk[EMBEDDING].read(), on_disk[HEAD].read())
        found = [different] if different else []
        raise_if_any(found, folder, remedy=_REMEDY, error=CheckpointError)

    problems: list[str] = []

    def read(name: str) -> Array:
        array = on_disk[name].read()
        found = value_problem(name, array)
        if not found and dtype is not None and array.dtype != dtype:
            with np.errstate(over="ignore"):
                array = array.astype(dtype)
            found = cast_problem(name, array)
        if found:
            problems.append(found)
        return array

    params: dict[str, Any] = {}
    for path, leaf in iter_params(read, layout.stored):
        insert(params, path, leaf)
    raise_if_any(problems, folder, remedy=_REMEDY, error=CheckpointError)
    return params


def _what_instead(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    found = f"found {', '.join(names[:8])}" if names else "the folder is empty"
    return (
        f"expected {SINGLE_FILE} or {torch_files.SINGLE_FILE}, or the .index.json of either and "
        f"its shards; {found}. Check the path, or download the checkpoint again"
    )
