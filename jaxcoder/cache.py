"""The key/value cache: the one file that knows how its buffers are laid out and used.

Row b holds ``lengths[b]`` tokens; token t of a row sits in slot t, which is also its position. New
tokens are written at ``lengths[b]`` onward and slots at or beyond it are never attended to, so
rows may stand at different lengths and *rolling back is lowering* ``lengths``. Nothing else needs
clearing: a stale slot is overwritten before it can be seen.

The slot count (capacity) is one of a few bucket sizes, so that few programs are compiled and cost
follows the context in use. JAX drops or clamps writes beyond a buffer without a word: callers check
``lengths + new tokens <= capacity`` on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .config import ModelConfig

Array = jax.Array

SMALLEST_CAPACITY = 256


class KVCache(NamedTuple):
    """Keys and values of every layer, and how many tokens each row holds."""

    layers: tuple[Array, ...]
    """n_layer buffers [B, S, K, 2H]: a key and its value side by side (128 lanes at H = 64)."""
    lengths: Array
    """int32 [B]: tokens held by each row."""

    @property
    def capacity(self) -> int:
        """S, the slots of every row."""
        return self.layers[0].shape[1]


def capacity_bucket(tokens: int, n_positions: int) -> int:
    """The smallest capacity for `tokens`: 256, 512, 1024, ... and at most `n_positions`."""
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, n_positions)


def init_cache(config: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> KVCache:
    """An empty cache for `batch` rows of `capacity` slots, keys and values stored as `dtype`.

    Made of host zeros: `jnp.zeros` would compile a program for every new shape.
    """
    shape = (batch, capacity, config.n_kv_head, 2 * config.head_dim)
    layers = tuple(jax.device_put(np.zeros(shape, dtype)) for _ in range(config.n_layer))
    return KVCache(layers, jax.device_put(np.zeros(batch, np.int32)))


def cache_bytes(config: ModelConfig, capacity: int, dtype: jnp.dtype) -> int:
    """Bytes that the buffers of one row of `capacity` slots take, stored as `dtype`."""
    row = config.n_kv_head * 2 * config.head_dim * jnp.dtype(dtype).itemsize
    return config.n_layer * capacity * row


def keys_and_values(kv: Array) -> tuple[Array, Array]:
    """Split kv [B, S, K, 2H], a buffer or fresh projections, into keys and values [B, S, K, H]."""
    head_dim = kv.shape[-1] // 2
    return kv[..., :head_dim], kv[..., head_dim:]


def append(buffer: Array, lengths: Array, kv: Array) -> Array:
    """Write kv [B, T, K, 2H] into one layer's buffer, row b from slot lengths[b] on.

    Slots beyond the capacity are dropped: only padding may lie there (see the module docstring).
    """
    rows = jnp.arange(kv.shape[0])[:, None]
    slots = lengths[:, None] + jnp.arange(kv.shape[1])[None, :]
    return buffer.at[rows, slots].set(kv.astype(buffer.dtype), mode="drop")


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same rows in buffers of `capacity` slots, which must not be fewer than now."""
    extra = capacity - cache.capacity
    layers = tuple(jnp.pad(buffer, ((0, 0), (0, extra), (0, 0), (0, 0))) for buffer in cache.layers)
    return cache._replace(layers=layers)
