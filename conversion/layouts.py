"""What a foreign checkpoint's config and tensor names mean, told in our own terms.

    canonical            gpt_bigcode or gpt2 as transformers writes it; a prefix may be missing
    SantaCoder           architectures GPT2LMHeadCustomModel: every matrix is a Conv1D, [in, out];
                         attention_head_type "multiquery" has attn.q_attn and attn.kv_attn,
                         "multihead" has GPT-2's c_attn
    early gpt_bigcode    has q_attn and kv_attn too, but as nn.Linear, [out, in]

Tensors are looked at by name and shape; none is read before it is asked for. This module knows no
files.

Source: bigcode/santacoder, ``modeling_gpt2_mq.py``; bigcode-project/starcoder.cpp, issue 21.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.hf_names import Array
from jaxcoder.problems import raise_if_any, shorten

_SANTACODER = "GPT2LMHeadCustomModel"

_QUERY, _KEY_VALUE, _FUSED = ".attn.q_attn.", ".attn.kv_attn.", ".attn.c_attn."

_CONV1D_WEIGHTS = (
    *(".attn.q_attn.weight", ".attn.kv_attn.weight", ".attn.c_proj.weight"),
    *(".mlp.c_fc.weight", ".mlp.c_proj.weight"),
)


class LazyTensor(NamedTuple):
    """A tensor of a source: its shape, and a function that reads it as a NumPy array."""

    shape: tuple[int, ...]
    read: Callable[[], Array]


class Layout(NamedTuple):
    """A source in canonical terms; `stored` and `model` differ in nothing but the layout."""

    stored: ModelConfig
    """The config whose layout `tensors` are in."""
    model: ModelConfig
    """The config to save the model under."""
    tensors: dict[str, LazyTensor]


def is_canonical(fields: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether a checkpoint with config `fields` and tensors `names` needs no translation."""
    return not _is_santacoder(fields) and not _has_query(names)


def find_layout(
    fields: Mapping[str, Any], tensors: Mapping[str, LazyTensor], *, source: object
) -> Layout:
    """Read config `fields` and `tensors` as one of the layouts above; `source` is for errors.

    Raises:
      ConfigError: a config that is none of them.
      CheckpointError: q_attn and kv_attn that do not belong together.
    """
    config_source = f"{source}/config.json"
    if _is_santacoder(fields):
        return _santacoder_layout(fields, tensors, source, config_source)
    if not _has_query(tensors):
        config = ModelConfig.from_hf_config(fields, source=config_source)
        return Layout(config, config, dict(tensors))
    # Type 3 is multi-query with separate projections, which end here.
    fused_type = {"attention_type": 2} if fields.get("attention_type") == 3 else {}
    config = ModelConfig.from_hf_config({**fields, **fused_type}, source=config_source)
    return Layout(config, config, _fuse(tensors, source))


def _is_santacoder(fields: Mapping[str, Any]) -> bool:
    architectures = fields.get("architectures")
    named = isinstance(architectures, list) and _SANTACODER in architectures
    model_type, head_type = fields.get("model_type"), fields.get("attention_head_type")
    return named or (model_type == "gpt2" and head_type == "multiquery")


def _has_query(names: Iterable[str]) -> bool:
    return any(_QUERY in name or _KEY_VALUE in name for name in names)


def _santacoder_layout(
    fields: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    source: object,
    config_source: str,
) -> Layout:
    head_type = fields.get("attention_head_type")
    if head_type not in ("multiquery", "multihead"):
        raise ConfigError(
            f"{config_source}: attention_head_type is {shorten(head_type)} beside architectures "
            f"{_SANTACODER}, expected 'multiquery' or 'multihead'; set what it was trained with"
        )
    foreign = ("architectures", "auto_map", "attention_head_type", "model_type")
    kept = {name: value for name, value in fields.items() if name not in foreign}
    # gpt_bigcode for multi-head too: as a gpt2, transformers would not split its digits.
    config = ModelConfig.from_hf_config(
        kept | {"model_type": "gpt_bigcode", "multi_query": head_type == "multiquery"},
        source=config_source,
    )
    if head_type == "multihead":
        return Layout(dataclasses.replace(config, model_type="gpt2"), config, dict(tensors))
    linear = {
        name: _transposed(tensor) if name.endswith(_CONV1D_WEIGHTS) else tensor
        for name, tensor in tensors.items()
    }
    return Layout(config, config, _fuse(linear, source))


def _fuse(tensors: Mapping[str, LazyTensor], source: object) -> dict[str, LazyTensor]:
    """Join each q_attn and its kv_attn, both [out, in], to the c_attn of multi-query attention."""
    fused = {}
    problems = []
    for name, tensor in tensors.items():
        if _KEY_VALUE in name:
            if name.replace(_KEY_VALUE, _QUERY) not in tensors:
                problems.append(f"{name!r} has no q_attn beside it")
        elif _QUERY not in name:
            fused[name] = tensor
        elif (other := tensors.get(name.replace(_QUERY, _KEY_VALUE))) is None:
            problems.append(f"{name!r} has no kv_attn beside it")
        elif len(tensor.shape) != len(other.shape) or tensor.shape[1:] != other.shape[1:]:
            problems.append(
                f"{name!r} is {list(tensor.shape)} and its kv_attn {list(other.shape)} as "
                "[out, in], expected equal inputs"
            )
        else:
            fused[name.replace(_QUERY, _FUSED)] = _concatenated(tensor, other)
    remedy = "download the checkpoint again"
    raise_if_any(problems, source, remedy=remedy, error=CheckpointError)
    return fused


def _transposed(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(tensor.shape[::-1], lambda: tensor.read().T)


def _concatenated(first: LazyTensor, second: LazyTensor) -> LazyTensor:
    rows = sum(part.shape[0] if part.shape else 0 for part in (first, second))
    shape = (rows, *first.shape[1:])
    return LazyTensor(shape, lambda: np.concatenate([first.read(), second.read()]))
