"""Writing a checkpoint with more small files than the library itself does, whole or not at all."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxcoder.checkpoint import TOKENIZER_FILE, save_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.durable import new_folder
from jaxcoder.errors import CheckpointError
from jaxcoder.hf_names import Params
from jaxcoder.json_file import json_bytes, read_json_object
from jaxcoder.manifest import MANIFEST_FILE

GENERATION_FILE = "generation_config.json"


def write_folder(
    destination: Path,
    source: Path,
    read: Callable[[], tuple[ModelConfig, Params]],
    make_files: Callable[[ModelConfig], Mapping[str, bytes]],
) -> None:
    """Save what `read` gives in the folder `destination`, which must be new or empty.

    Args:
      destination: refused before anything is read.
      source: the folder read from; its tokenizer.json is copied if there is one.
      read: gives the config and the parameter tree.
      make_files: gives name and content of the further files, which the manifest lists too.

    Raises:
      CheckpointError: `destination` is taken or cannot be written; nothing is left behind.
      ValueError: what `read`, `make_files` and `save_checkpoint` raise.
    """
    tokenizer = source / TOKENIZER_FILE
    weight_bytes = sum(file.stat().st_size for file in source.iterdir() if file.is_file())
    with new_folder(destination, needed_bytes=weight_bytes) as folder:
        config, params = read()
        files = make_files(config)
        # An empty folder is one to save into: the library's own writer stays the only one.
        save_checkpoint(
            folder, config, params, tokenizer_file=tokenizer if tokenizer.exists() else None
        )
        for name, content in files.items():
            (folder / name).write_bytes(content)
        _add_to_manifest(folder / MANIFEST_FILE, files)


def read_generation_config(source: Path) -> bytes | None:
    """The generation_config.json in `source` as it is, or None where there is none.

    Raises:
      CheckpointError: it is not a JSON object.
    """
    path = source / GENERATION_FILE
    if not path.exists():
        return None
    read_json_object(path, error=CheckpointError)
    return path.read_bytes()


def _add_to_manifest(path: Path, files: Mapping[str, bytes]) -> None:
    fields = read_json_object(path, limit=64 << 20, error=CheckpointError)
    fields["files"] |= {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    path.write_bytes(json_bytes(fields))
