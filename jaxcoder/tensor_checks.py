"""Whether the tensors on disk are those of the config: names and shapes first, then values.

Functions return findings as text, so that a caller can report all of them in one error.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from .config import ModelConfig
from .hf_names import (
    EMBEDDING,
    HEAD,
    Array,
    Params,
    canonical_name,
    is_mask_buffer,
    iter_params,
    tensor_shapes,
)
from .shards import CONVERT_HINT

DTYPES = ("float32", "bfloat16", "float16")
"""What a weight may be, in memory and, under the format's names, on disk."""

_LAYER = re.compile(r"transformer\.h\.(\d+)\.")

_CHUNK = 1 << 20
"""Elements looked at together: the temporaries stay small beside the tensor."""


class Shaped(Protocol):
    """A tensor of which nothing but the shape is known, on disk or elsewhere."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of its axes."""
        ...


class Matched(NamedTuple):
    """The name on disk of every canonical tensor, and what is wrong with the set."""

    name_on_disk: dict[str, str]
    problems: list[str]


def match_tensors(tensors: Mapping[str, Shaped], config: ModelConfig) -> Matched:
    """Find each tensor of `config` among those on disk; mask buffers there are skipped.

    With a tied output head, either of embedding and head may stand for both.
    """
    if any(".attn.q_attn." in name or ".attn.kv_attn." in name for name in tensors):
        return Matched(
            {},
            [
                "holds attn.q_attn and attn.kv_attn, the original SantaCoder layout, "
                f"expected attn.c_attn: {CONVERT_HINT}"
            ],
        )
    problems = []
    found: dict[str, str] = {}
    for name in tensors:
        if is_mask_buffer(name):
            continue
        canonical = canonical_name(name)
        if canonical in found:
            problems.append(f"{canonical!r} is there twice: as {found[canonical]!r} and {name!r}")
        found[canonical] = name
    shapes = tensor_shapes(config)
    allowed = dict(shapes)
    if config.tie_word_embeddings:
        allowed[HEAD] = shapes[EMBEDDING]
        if HEAD in found:
            found.setdefault(EMBEDDING, found[HEAD])

    problems += [
        f"missing {name!r}, expected {list(shape)}{_layer_hint(name, config)}"
        for name, shape in shapes.items()
        if name not in found
    ]
    problems += [
        f"unexpected {on_disk!r} {list(tensors[on_disk].shape)}{_layer_hint(name, config)}"
        for name, on_disk in found.items()
        if name not in allowed
    ]
    problems += [
        f"{on_disk!r} is {list(got)}, expected {list(allowed[name])}"
        f"{_shape_hint(name, got, allowed[name], config)}"
        for name, on_disk in found.items()
        if name in allowed and (got := tensors[on_disk].shape) != allowed[name]
    ]
    return Matched(found, problems)


def tree_problems(params: Params, config: ModelConfig) -> list[str]:
    """Where a parameter tree is not that of `config`, leaf for leaf."""
    shapes = tensor_shapes(config)
    # One zero, broadcast: the table's own splits give the shapes and cost no memory.
    zeros = iter_params(lambda name: np.broadcast_to(np.float32(0), shapes[name]), config)
    expected = {path: leaf.shape for path, leaf in zeros}
    leaves = dict(_leaves(params, ()))
    problems = [f"missing {'/'.join(path)}" for path in expected if path not in leaves]
    for path, leaf in leaves.items():
        name = "/".join(path)
        if path not in expected:
            problems.append(f"unexpected {name}")
        elif leaf.shape != expected[path]:
            problems.append(f"{name} is {list(leaf.shape)}, expected {list(expected[path])}")
        elif leaf.dtype.name not in DTYPES:
            problems.append(f"{name} is {leaf.dtype}, expected one of {', '.join(DTYPES)}")
    return problems


def head_problem(embedding: Array, head: Array) -> str | None:
    """Whether an output head stored beside the embedding it is tied to differs from it."""
    same_type = embedding.dtype == head.dtype
    if same_type and np.array_equal(embedding.view(np.uint8), head.view(np.uint8)):
        return None
    detail = "in value" if same_type else f"in dtype ({head.dtype} and {embedding.dtype})"
    return (
        f"{HEAD!r} and {EMBEDDING!r} differ {detail}, but tie_word_embeddings is true; set it to "
        "false if the head is its own, or remove the head"
    )


def value_problem(name: str, array: Array) -> str | None:
    """Whether a tensor holds NaN or Inf."""
    nan = infinite = 0
    for chunk in _chunks(array):
        finite = np.isfinite(chunk)
        if not finite.all():
            nan += int(np.isnan(chunk).sum())
            infinite += int(np.isinf(chunk).sum())
    if nan or infinite:
        return f"{name!r} holds {nan} NaN and {infinite} Inf among {array.size} values"
    return None


def cast_problem(name: str, cast: Array) -> str | None:
    """Whether a cast made a finite tensor infinite."""
    count = sum(int(np.isinf(chunk).sum()) for chunk in _chunks(cast))
    if not count:
        return None
    wider = "float32" if cast.dtype.name == "bfloat16" else "float32 or bfloat16"
    return f"{name!r}: {count} values are too large for {cast.dtype}; ask for {wider}"


def warn_suspicious(name: str, array: Array, source: object) -> None:
    """Warn of a matrix of zeros, and of subnormals where training does not leave them.

    float16 is left out of the latter: its subnormals begin at 6e-5, an ordinary weight.
    """
    if array.ndim == 2 and not any(chunk.any() for chunk in _chunks(array)):
        warnings.warn(f"{source}: {name!r} is all zeros", stacklevel=2)
    if array.dtype == np.float16:
        return
    tiny = np.finfo(np.float32).tiny
    count = sum(int(((chunk != 0) & (np.abs(chunk) < tiny)).sum()) for chunk in _chunks(array))
    if count:
        warnings.warn(
            f"{source}: {name!r} holds {count} subnormal values (below {tiny:.1e}); "
            "were its bytes written as another dtype?",
            stacklevel=2,
        )


def _chunks(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]


def _leaves(tree: Params, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _layer_hint(name: str, config: ModelConfig) -> str:
    match = _LAYER.match(name)
    if match and int(match[1]) >= config.n_layer:
        return f" (n_layer is {config.n_layer} in config.json)"
    return ""


def _shape_hint(
    name: str, got: tuple[int, ...], expected: tuple[int, ...], config: ModelConfig
) -> str:
    """The config field, or the layout, that explains a wrong shape."""
    if ".c_attn." in name:
        n, h = config.n_head, config.head_dim
        rows = {True: (n + 2) * h, False: 3 * n * h}
        other = not config.multi_query
        if got[-1:] == (rows[other],) or got[:1] == (rows[other],):
            return (
                f": that is {'multi-query' if other else 'multi-head'} attention, but multi_query "
                f"is {str(config.multi_query).lower()} in config.json"
            )
        input_axis = 0 if config.model_type == "gpt2" else 1
        if name.endswith("bias") or (len(got) == 2 and got[input_axis] == expected[input_axis]):
            return f": n_head is {n} and n_embd {config.n_embd} in config.json"
    if len(got) == 2 and got == expected[::-1]:
        return (
            ": transposed; model_type gpt2 stores [in, out], gpt_bigcode [out, in], and "
            f"config.json says {config.model_type}"
        )
    if len(got) != len(expected):
        return ""
    field = {EMBEDDING: "vocab_size", HEAD: "vocab_size", "transformer.wpe.weight": "n_positions"}
    if name in field and got[1:] == expected[1:]:
        size = getattr(config, field[name])
        return f": {field[name]} is {size} in config.json, the weights say {got[0]}"
    for size_field in ("n_inner", "n_embd"):
        size = getattr(config, size_field)
        differing = [pair for pair in zip(expected, got, strict=True) if pair[0] != pair[1]]
        if all(pair[0] == size for pair in differing):
            return f": {size_field} is {size} in config.json, the weights say {differing[0][1]}"
    return ""
