"""The whole model once more in plain NumPy float64: the definition that everything is held against.

It reads Hugging Face's tensors (canonical names, float64) by itself, so that the name table, the
JAX model and this file can only agree by being right. Slow on purpose: no cache, no tricks.

Letters: T tokens, S keys (= T), N query heads, K key/value heads, H head dim, D n_embd, F n_inner,
V vocabulary.

Source: transformers, ``modeling_gpt_bigcode.py`` and ``modeling_gpt2.py``; GELU arXiv:1606.08415.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .config import ModelConfig

Array = np.ndarray


class Forward(NamedTuple):
    """What `forward` computed for one sequence."""

    logits: Array
    """[T, V]"""
    residuals: list[Array]
    """n_layer + 2 arrays [T, D]: the embedding, the stream after each block, the final norm."""
    activations: dict[str, Array]
    """All that `activations.shapes` names, without its batch axis, where it was asked for."""


def forward(
    tensors: Mapping[str, Array],
    config: ModelConfig,
    tokens: Array,
    *,
    with_activations: bool = False,
) -> Forward:
    """Run `tokens` [T] through the model.

    Args:
      tensors: canonical Hugging Face tensors; computed in float64 whatever their dtype.
      config: the model's shape.
      tokens: ids [T], T ≤ n_positions.
      with_activations: keep every intermediate result, N·T² numbers of a layer among them.

    Raises:
      ValueError: more tokens than positions.
    """
    activations: dict[str, Array] = {}

    def named(name: str, x: Array) -> Array:
        if with_activations:
            activations[name] = x
        return x

    def weight(name: str) -> Array:
        return np.asarray(tensors[name], dtype=np.float64)

    def linear(x: Array, name: str) -> Array:
        w = weight(f"{name}.weight")
        out_in = w.T if config.model_type == "gpt2" else w  # GPT-2 stores Conv1D weights [in, out]
        return x @ out_in.T + weight(f"{name}.bias")

    def layer_norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        normed = centred / np.sqrt(variance + config.layer_norm_epsilon)
        return normed * weight(f"{name}.weight") + weight(f"{name}.bias")

    if len(tokens) > config.n_positions:
        raise ValueError(f"{len(tokens)} tokens, but the model has {config.n_positions} positions")
    x = weight("transformer.wte.weight")[tokens] + weight("transformer.wpe.weight")[: len(tokens)]
    residuals = [named("embed", x)]
    for i in range(config.n_layer):
        h, block = f"h.{i}", f"transformer.h.{i}"
        normed = named(f"{h}.ln_1", layer_norm(x, f"{block}.ln_1"))
        qkv = split_heads(linear(normed, f"{block}.attn.c_attn"), config)
        q, k, v = (named(f"{h}.attn.{name}", a) for name, a in zip("qkv", qkv, strict=True))
        pattern = named(f"{h}.attn.pattern", attention_pattern(q, k, config.attention_scale(i)))
        mixed = named(f"{h}.attn.mixed", mix(pattern, v))
        x = x + named(f"{h}.attn", linear(mixed, f"{block}.attn.c_proj"))
        normed = named(f"{h}.ln_2", layer_norm(x, f"{block}.ln_2"))
        inner = activation(linear(normed, f"{block}.mlp.c_fc"), config)
        named(f"{h}.mlp.inner", inner)
        x = x + named(f"{h}.mlp", linear(inner, f"{block}.mlp.c_proj"))
        residuals.append(named(h, x))
    x = named("ln_f", layer_norm(x, "transformer.ln_f"))
    head = "transformer.wte.weight" if config.tie_word_embeddings else "lm_head.weight"
    logits = named("logits", x @ weight(head).T)
    return Forward(logits, [*residuals, x], activations)


def split_heads(qkv: Array, config: ModelConfig) -> tuple[Array, Array, Array]:
    """The fused projection [T, (N + 2K)·H] as q [T, N, H] and k, v [T, K, H]."""
    length, n, h = len(qkv), config.n_head, config.head_dim
    if config.multi_query:  # [ all q | one k | one v ]
        q, k, v = np.split(qkv, [n * h, (n + 1) * h], axis=-1)
        return q.reshape(length, n, h), k.reshape(length, 1, h), v.reshape(length, 1, h)
    if config.model_type == "gpt2":  # [ all q | all k | all v ]
        q, k, v = np.split(qkv.reshape(length, 3, n, h), 3, axis=1)
        return q[:, 0], k[:, 0], v[:, 0]
    heads = qkv.reshape(length, n, 3, h)  # [ q k v ] of head 0, [ q k v ] of head 1, ...
    return heads[:, :, 0], heads[:, :, 1], heads[:, :, 2]


def attention_pattern(q: Array, k: Array, scale: float) -> Array:
    """Causal softmax(scale · q kᵀ) of `q` [T, N, H], `k` [S, K, H] -> [N, T, S]."""
    length, n = q.shape[:2]
    causal = np.tril(np.ones((length, length), dtype=bool))
    pattern = np.empty((n, length, length))
    for head in range(n):
        kv_head = head if k.shape[1] == n else 0
        scores = np.where(causal, scale * (q[:, head] @ k[:, kv_head].T), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        pattern[head] = weights / weights.sum(-1, keepdims=True)
    return pattern


def mix(pattern: Array, v: Array) -> Array:
    """Values `v` [S, K, H] weighed by a pattern [N, T, S] -> [T, N·H], head after head."""
    n, length = pattern.shape[:2]
    heads = [pattern[head] @ v[:, head if v.shape[1] == n else 0] for head in range(n)]
    return np.stack(heads, axis=1).reshape(length, -1)


def activation(x: Array, config: ModelConfig) -> Array:
    """GELU, x·Φ(x), of each number of x [T, F]: exact for "gelu", else the tanh approximation."""
    if config.activation_function == "gelu":
        erf = np.asarray(np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)), np.float64)
        return 0.5 * x * (1 + erf)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def log_softmax(logits: Array) -> Array:
    """Natural-log probabilities over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
