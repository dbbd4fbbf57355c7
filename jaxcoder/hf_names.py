"""The one name table between Hugging Face's tensors and our parameter tree, both ways, lossless.

Our tree follows the checkpoint's own words and keeps its ``[out, in]`` weights:

    wte/weight [V, D]   wpe/weight [P, D]   ln_f/{weight,bias} [D]   lm_head/weight [V, D] (untied)
    h_<i>/ln_1, ln_2    {weight,bias} [D]
    h_<i>/attn/q        weight [N*H, D],    bias: query heads, head-major
    h_<i>/attn/kv       weight [K*2*H, D],  bias: for each key/value head, its key then its value
    h_<i>/attn/c_proj   weight [D, N*H],    bias
    h_<i>/mlp/c_fc      weight [F, D],      bias;   h_<i>/mlp/c_proj  weight [D, F], bias

Only the fused ``c_attn`` needs more than a copy. Its outputs are packed in three ways:

    gpt_bigcode, multi-query   [ q: N*H | k: H | v: H ]
    gpt_bigcode, multi-head    for each head [ q: H | k: H | v: H ]   (Megatron's, interleaved)
    gpt2                       [ q: N*H | k: N*H | v: N*H ]           (Conv1D: stored [in, out])

This module knows neither JAX nor files.

Source: transformers, ``modeling_gpt_bigcode.py`` and ``modeling_gpt2.py``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .config import ModelConfig

Array = np.ndarray
Params = dict[str, Any]

PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.wte.weight"

_MASK_BUFFER = re.compile(r"(transformer\.)?(h\.\d+\.attn\.(bias|masked_bias)|bias)")


def is_mask_buffer(name: str) -> bool:
    """Whether `name` is a causal-mask buffer, which old checkpoints store beside the weights."""
    return _MASK_BUFFER.fullmatch(name) is not None


def canonical_name(name: str) -> str:
    """`name` as transformers writes it for a causal LM: with the ``transformer.`` prefix."""
    return name if name.startswith((PREFIX, "lm_head.")) else PREFIX + name


class _Entry(NamedTuple):
    """One tensor on disk: its shape there and the leaves of our tree it becomes."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]
    split: Callable[[Array], tuple[Array, ...]]
    join: Callable[..., Array]


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The exact set of tensors a checkpoint of `config` holds: canonical name -> shape on disk."""
    return {entry.name: entry.shape for entry in _table(config)}


def iter_params(
    read: Callable[[str], Array], config: ModelConfig
) -> Iterator[tuple[tuple[str, ...], Array]]:
    """Yield (path, array) of every parameter; `read` gives a tensor by its canonical name.

    Shapes, ours [out, in], are those of the module's table.

    Arrays may be views of what `read` gave. One tensor is read at a time, so that a caller that
    places each leaf before it asks for the next never holds the whole checkpoint twice.
    """
    for entry in _table(config):
        yield from zip(entry.paths, entry.split(read(entry.name)), strict=True)


def params_from_hf(tensors: Mapping[str, Array], config: ModelConfig) -> Params:
    """The parameter tree of canonical `tensors`, as NumPy arrays of the same dtype, [out, in]."""
    params: Params = {}
    for path, array in iter_params(tensors.__getitem__, config):
        insert(params, path, array)
    return params


def params_to_hf(params: Params, config: ModelConfig) -> dict[str, Array]:
    """The canonical tensors of a parameter tree: contiguous, bit for bit what was loaded.

    Shapes are those on disk, for GPT-2 [in, out], see `tensor_shapes`.
    """
    return {
        entry.name: np.ascontiguousarray(
            entry.join(*(np.asarray(_lookup(params, path)) for path in entry.paths))
        )
        for entry in _table(config)
    }


def insert(params: Params, path: tuple[str, ...], leaf: Any) -> None:
    """Set ``params[path[0]][path[1]]...`` to `leaf`, making the dicts on the way."""
    for key in path[:-1]:
        params = params.setdefault(key, {})
    params[path[-1]] = leaf


def _lookup(params: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


def _table(config: ModelConfig) -> list[_Entry]:
    d, f = config.n_embd, config.n_inner
    entries = [
        _copy("wte.weight", (config.vocab_size, d), ("wte", "weight")),
        _copy("wpe.weight", (config.n_positions, d), ("wpe", "weight")),
    ]
    for i in range(config.n_layer):
        hf, ours = f"h.{i}", f"h_{i}"
        entries += [
            *_norm(f"{hf}.ln_1", (ours, "ln_1"), d),
            *_c_attn(config, f"{hf}.attn.c_attn", (ours, "attn")),
            *_linear(config, f"{hf}.attn.c_proj", (ours, "attn", "c_proj"), d, d),
            *_norm(f"{hf}.ln_2", (ours, "ln_2"), d),
            *_linear(config, f"{hf}.mlp.c_fc", (ours, "mlp", "c_fc"), d, f),
            *_linear(config, f"{hf}.mlp.c_proj", (ours, "mlp", "c_proj"), f, d),
        ]
    entries += _norm("ln_f", ("ln_f",), d)
    if not config.tie_word_embeddings:
        entries.append(_copy("lm_head.weight", (config.vocab_size, d), ("lm_head", "weight")))
    return entries


def _copy(name: str, shape: tuple[int, ...], path: tuple[str, ...]) -> _Entry:
    return _Entry(canonical_name(name), shape, (path,), lambda a: (a,), lambda a: a)


def _norm(name: str, path: tuple[str, ...], width: int) -> list[_Entry]:
    return [_copy(f"{name}.{leaf}", (width,), (*path, leaf)) for leaf in ("weight", "bias")]


def _linear(
    config: ModelConfig, name: str, path: tuple[str, ...], n_in: int, n_out: int
) -> list[_Entry]:
    weight = _copy(f"{name}.weight", (n_out, n_in), (*path, "weight"))
    if config.model_type == "gpt2":
        weight = weight._replace(shape=(n_in, n_out), split=lambda a: (a.T,), join=lambda a: a.T)
    return [weight, _copy(f"{name}.bias", (n_out,), (*path, "bias"))]


def _c_attn(config: ModelConfig, name: str, path: tuple[str, ...]) -> list[_Entry]:
    """The fused attention projection: outputs on axis 0, split into q and kv, joined again."""
    d, n, k, h = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
    n_out = (n + 2 * k) * h

    # `rest` is (D,) for a weight and () for a bias: heads are cut on the output axis alone.
    if config.multi_query:

        def split(a: Array) -> tuple[Array, Array]:
            return a[: n * h], a[n * h :]

        def join(q: Array, kv: Array) -> Array:
            return np.concatenate([q, kv])

    elif config.model_type == "gpt2":

        def split(a: Array) -> tuple[Array, Array]:
            rest = a.shape[1:]
            q, key, value = a.reshape(3, n, h, *rest)
            return q.reshape(-1, *rest), np.stack([key, value], axis=1).reshape(-1, *rest)

        def join(q: Array, kv: Array) -> Array:
            rest = q.shape[1:]
            key_value = np.moveaxis(kv.reshape(n, 2, h, *rest), 1, 0)
            return np.concatenate([q, key_value.reshape(-1, *rest)])

    else:

        def split(a: Array) -> tuple[Array, Array]:
            rest = a.shape[1:]
            heads = a.reshape(n, 3, h, *rest)
            return heads[:, 0].reshape(-1, *rest), heads[:, 1:].reshape(-1, *rest)

        def join(q: Array, kv: Array) -> Array:
            rest = q.shape[1:]
            heads = [q.reshape(n, 1, h, *rest), kv.reshape(n, 2, h, *rest)]
            return np.concatenate(heads, axis=1).reshape(-1, *rest)

    def entry(leaf: str, shape: tuple[int, ...]) -> _Entry:
        paths = ((*path, "q", leaf), (*path, "kv", leaf))
        return _Entry(canonical_name(f"{name}.{leaf}"), shape, paths, split, join)

    weight = entry("weight", (n_out, d))
    if config.model_type == "gpt2":
        weight = weight._replace(
            shape=(d, n_out), split=lambda a: split(a.T), join=lambda *leaves: join(*leaves).T
        )
    return [weight, entry("bias", (n_out,))]
