"""Tiny checkpoints for tests, and their bytes taken apart so that a test can damage them."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import tensor_shapes
from jaxcoder.safetensors_file import write_safetensors

MQA = ModelConfig(
    vocab_size=17, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=20, eos_token_ids=(0,)
)


def random_tensors(config: ModelConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Canonical tensors of `config` with normal values, the same on every call."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in tensor_shapes(config).items()
    }


def write_plain(folder: Path, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """A checkpoint as others write it: config.json and model.safetensors, no manifest."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config.to_hf_config())
    write_safetensors(folder / "model.safetensors", tensors)


def write_json(path: Path, fields: Any) -> None:
    """Write `fields` as JSON."""
    path.write_text(json.dumps(fields))


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON object on disk."""
    write_json(path, json.loads(path.read_text()) | changes)


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a .safetensors file as JSON, and its data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join_file(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """Write a .safetensors file of any header and data, valid or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Name, mode, size, time and content (of files up to 1 MB) of everything in `folder`."""
    result = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        content: Any = os.readlink(path) if path.is_symlink() else None
        readable = stat.S_ISREG(info.st_mode) and info.st_size <= 1 << 20
        if readable and os.access(path, os.R_OK):
            content = path.read_bytes()
        result[str(path)] = (info.st_mode, info.st_size, info.st_mtime_ns, content)
    return result
