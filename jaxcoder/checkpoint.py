"""Checkpoints: a folder in Hugging Face's layout <-> (`ModelConfig`, parameter tree).

    config.json               the model; see `config`
    model.safetensors         the weights, or shards and model.safetensors.index.json; see `shards`
    tokenizer.json            copied when given; see `tokenizer`
    jaxcoder_manifest.json    hashes of all of these, on checkpoints written here; see `manifest`

Loading checks names, shapes and dtypes before the first byte of a tensor is read, and collects all
that is wrong into one error.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .config import ModelConfig
from .durable import is_partial, new_folder
from .errors import CheckpointError
from .hf_names import (
    EMBEDDING,
    HEAD,
    Array,
    Params,
    insert,
    iter_params,
    params_to_hf,
)
from .json_file import json_bytes, read_regular_file
from .manifest import (
    MANIFEST_FILE,
    Manifest,
    file_problems,
    hash_problem,
    make_manifest,
    read_manifest,
    tensor_problems,
)
from .problems import raise_if_any
from .safetensors_file import open_tensors, write_safetensors
from .shards import (
    INDEX_FILE,
    SINGLE_FILE,
    Weights,
    find_weights,
    plan_shards,
    shard_file_name,
)
from .tensor_checks import (
    DTYPES,
    cast_problem,
    head_problem,
    match_tensors,
    tree_problems,
    value_problem,
    warn_suspicious,
)

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"

_MAX_TOKENIZER_BYTES = 64 << 20

Read = Callable[[str], Array]


def load_checkpoint(path: Path | str, *, dtype: str | None = None) -> tuple[ModelConfig, Params]:
    """Read the checkpoint in the folder `path`.

    Args:
      path: the folder; for a repository of the Hugging Face Hub see `hub.resolve`.
      dtype: "float32", "bfloat16" or "float16" to cast every weight; None keeps what is stored.

    Returns:
      The config, and the tree of `hf_names` with JAX arrays that own their memory.

    Raises:
      ConfigError: config.json is missing, damaged, or of another architecture.
      CheckpointError: weights missing, damaged, not those of the config, or not finite.
      ValueError: an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}, or None")
    folder = _existing_folder(path)
    config = ModelConfig.from_file(folder / CONFIG_FILE)
    weights = find_weights(folder)
    manifest = read_manifest(folder)
    matched = match_tensors(weights.tensors, config)
    problems = list(matched.problems)
    if manifest is not None:
        needed = {CONFIG_FILE} | ({INDEX_FILE} if weights.index else set())
        problems += file_problems(manifest, folder, needed=needed)
        if not matched.problems:
            problems += tensor_problems(manifest, weights.tensors)
    _raise(problems, folder)

    with _open_weights(weights) as read:
        if config.tie_word_embeddings and HEAD in matched.name_on_disk:
            names = matched.name_on_disk[EMBEDDING], matched.name_on_disk[HEAD]
            different = names[0] != names[1] and head_problem(*map(read, names))
            _raise([different] if different else [], folder)
        return config, _read_params(folder, config, manifest, matched.name_on_disk, read, dtype)


def save_checkpoint(
    path: Path | str,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer_file: Path | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint that transformers reads too, into a folder that is new or empty.

    The folder appears complete or not at all.

    Args:
      path: the folder; missing parents are made.
      config: the model.
      params: its tree of float32, bfloat16 or float16 arrays, which are stored as they are.
      tokenizer_file: a tokenizer.json to copy beside the weights.
      max_shard_bytes: start another file before one exceeds this; None writes a single file.

    Raises:
      ValueError: the tree is not that of the config, holds NaN or Inf, or a bad argument.
      CheckpointError: `path` is taken, or cannot be written; nothing is left behind.
    """
    if max_shard_bytes is not None and (type(max_shard_bytes) is not int or max_shard_bytes < 1):
        raise ValueError(
            f"max_shard_bytes is {max_shard_bytes!r}, expected a positive integer or None"
        )
    remedy = "give the finite weights of this config"
    raise_if_any(tree_problems(params, config), "params", remedy=remedy, error=ValueError)
    tensors = params_to_hf(params, config)
    found = [value_problem(name, array) for name, array in tensors.items()]
    raise_if_any([text for text in found if text], "params", remedy=remedy, error=ValueError)
    small_files = {CONFIG_FILE: json_bytes(_config_fields(config, tensors))}
    if tokenizer_file is not None:
        small_files[TOKENIZER_FILE] = read_regular_file(
            tokenizer_file, limit=_MAX_TOKENIZER_BYTES, error=CheckpointError
        )
    shards = plan_shards(tensors, max_shard_bytes)
    file_names = [SINGLE_FILE]
    if len(shards) > 1:
        file_names = [shard_file_name(i + 1, len(shards)) for i in range(len(shards))]
        small_files[INDEX_FILE] = json_bytes(_index_fields(tensors, shards, file_names))
    small_files[MANIFEST_FILE] = json_bytes(make_manifest(small_files, tensors))

    needed = sum(array.nbytes for array in tensors.values()) + sum(map(len, small_files.values()))
    with new_folder(Path(path), needed_bytes=needed) as folder:
        for file_name, names in zip(file_names, shards, strict=True):
            write_safetensors(folder / file_name, {name: tensors[name] for name in names})
        for name, content in small_files.items():
            (folder / name).write_bytes(content)


def _existing_folder(path: Path | str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no such folder"
        raise CheckpointError(
            f"{folder}: {kind}, expected the folder of a checkpoint; check the path"
        )
    if is_partial(folder):
        raise CheckpointError(
            f"{folder}: left by a save that was interrupted, expected a finished checkpoint; "
            "delete it and save again"
        )
    return folder


@contextmanager
def _open_weights(weights: Weights) -> Iterator[Read]:
    with ExitStack() as stack:
        readers = {
            file: stack.enter_context(open_tensors(file, header))
            for file, header in weights.headers.items()
        }
        yield lambda name: readers[weights.file_of[name]](name)


def _read_params(
    folder: Path,
    config: ModelConfig,
    manifest: Manifest | None,
    name_on_disk: Mapping[str, str],
    read: Read,
    dtype: str | None,
) -> Params:
    """Stream the tensors, one at a time, through the checks of their values to the device."""
    problems: list[str] = []

    def read_checked(name: str) -> Array:
        on_disk = name_on_disk[name]
        array = read(on_disk)
        found = None if manifest is None else hash_problem(manifest, on_disk, array)
        found = found or value_problem(on_disk, array)
        if not found:
            warn_suspicious(on_disk, array, folder)
            if dtype is not None and array.dtype != dtype:
                with np.errstate(over="ignore"):
                    array = array.astype(dtype)
                found = cast_problem(on_disk, array)
        if found:
            problems.append(found)
        return array

    params: Params = {}
    for path, leaf in iter_params(read_checked, config):
        if problems:
            params.clear()
        else:
            # Not device_put: on CPU it may keep the NumPy memory, even with may_alias=False.
            insert(params, path, jnp.array(leaf))
    _raise(problems, folder)
    return params


def _raise(problems: list[str], folder: Path) -> None:
    remedy = "check the folder, or download or convert the checkpoint again"
    raise_if_any(problems, folder, remedy=remedy, error=CheckpointError)


def _config_fields(config: ModelConfig, tensors: Mapping[str, Array]) -> dict[str, Any]:
    names = {array.dtype.name for array in tensors.values()}
    dtype = names.pop() if len(names) == 1 else "float32"
    # transformers 5 reads dtype, 4 reads torch_dtype.
    return config.to_hf_config() | {"dtype": dtype, "torch_dtype": dtype}


def _index_fields(
    tensors: Mapping[str, Array], shards: list[list[str]], file_names: list[str]
) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
        "weight_map": {
            name: file for file, names in zip(file_names, shards, strict=True) for name in names
        },
    }
