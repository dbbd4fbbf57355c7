"""Causal attention of whole sequences, in blocks of queries, with a gradient of its own.

A block of queries reads only the keys up to its end, so that nearly half of the scores are never
computed. The backward pass keeps queries, keys, values, outputs and one normaliser a query, and
computes the weights again, and which of them are dropped: what is held at once is one block's
scores, not N * T * T a layer.

Letters as in layers.py; t queries of a block, R = G * t rows that read one key/value head.

Source: Rabe and Staats arXiv:2112.05682, Dao et al. arXiv:2205.14135.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .products import FLOAT32, product, row_sum_product

Array = jax.Array
Dtype = jnp.dtype

# Blocks of at least this many queries, and at most as many blocks as _MOST_BLOCKS: each is code of
# its own in the compiled program.
_LEAST_BLOCK = 256
_MOST_BLOCKS = 8


class _Choices(NamedTuple):
    scale: float
    dtype: Dtype
    dropout_rate: float


class _Kept(NamedTuple):
    """What the backward pass needs."""

    queries: Array  # [B, T, K, G, H], scaled, in dtype
    keys: Array  # [B, T, K, H], in dtype
    values: Array
    segment_ids: Array | None
    dropout_key: Array | None
    out: Array  # [B, T, K, G, H]
    normalisers: tuple[Array, ...]  # of each block [B, K, R, 1]


def self_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    dtype: Dtype,
    segment_ids: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """softmax(scale · q·k) v over the tokens up to each query's own, in the same segment.

    Args:
      q: float32 [B, T, N, H].
      k, v: float32 [B, T, K, H]; K divides N, and head n reads key/value head n // (N / K).
      scale: factor on the scores.
      dtype: of the operands; scores, softmax and sums are float32.
      segment_ids: int32 [B, T] or None: tokens see their own segment only.
      dropout_rate: share of the softmax's weights that are zero, the others scaled up for it.
      dropout_key: random key, needed for a rate above zero.

    Returns:
      float32 [B, T, N, H].
    """
    batch, length, n_head, head_dim = q.shape
    n_kv_head = k.shape[2]
    grouped = q.reshape(batch, length, n_kv_head, n_head // n_kv_head, head_dim)
    choices = _Choices(scale, dtype, dropout_rate)
    out = _attend(choices, grouped, k, v, segment_ids, dropout_key if dropout_rate else None)
    return out.reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    choices: _Choices,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
    dropout_key: Array | None,
) -> Array:
    return _forward(choices, q, k, v, segment_ids, dropout_key)[0]


def _forward(
    choices: _Choices,
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
    dropout_key: Array | None,
) -> tuple[Array, _Kept]:
    dtype = choices.dtype
    q, k, v = (q * choices.scale).astype(dtype), k.astype(dtype), v.astype(dtype)
    outs, normalisers = [], []
    for start, stop in _blocks(q.shape[1]):
        scores = _scores(q, k, segment_ids, start, stop, dtype)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        # Divided after the product: H columns, not S.
        dropped = _dropout(weights, choices.dropout_rate, dropout_key, start)
        mixed = product("bkrs,bskh->bkrh", dropped, v[:, :stop], dtype) / total
        outs.append(_by_query(mixed, stop - start))
        normalisers.append(largest + jnp.log(total))
    out = jnp.concatenate(outs, axis=1)
    return out, _Kept(q, k, v, segment_ids, dropout_key, out, tuple(normalisers))


def _backward(
    choices: _Choices, kept: _Kept, d_out: Array
) -> tuple[Array, Array, Array, None, None]:
    dtype = choices.dtype
    segment_ids = kept.segment_ids
    # Or the compiler finds the forward pass's weights and masks equal to these, and keeps them all.
    q, k, v, dropout_key, out, normalisers = lax.optimization_barrier(
        (kept.queries, kept.keys, kept.values, kept.dropout_key, kept.out, kept.normalisers)
    )
    drop = functools.partial(_dropout, rate=choices.dropout_rate, key=dropout_key)
    # The sum over H as a product: fused with its factors, the reduction takes 10 times as long.
    ones = jnp.ones(out.shape[-1:], jnp.float32)
    shift = product("btkgh,h->btkg", out * d_out, ones, FLOAT32)[..., None]
    d_out = d_out.astype(dtype)
    # [B, K, H, T] until the end: the operand that is transposed in memory is then the small one.
    dq, dk, dv = [], *(jnp.zeros(a.transpose(0, 2, 3, 1).shape, jnp.float32) for a in (k, v))
    for (start, stop), normaliser in zip(_blocks(q.shape[1]), normalisers, strict=True):
        rows, d_rows = _by_row(q, start, stop), _by_row(d_out, start, stop)
        weights = jnp.exp(_scores(q, k, segment_ids, start, stop, dtype) - normaliser)
        d_weights = drop(product("bkrh,bskh->bkrs", d_rows, v[:, :stop], dtype), start=start)
        d_scores = (weights * (d_weights - _by_row(shift, start, stop))).astype(dtype)
        dropped = drop(weights, start=start)
        dv = dv.at[..., :stop].add(row_sum_product("bkrh,bkrs->bkhs", d_rows, dropped, dtype))
        dk = dk.at[..., :stop].add(row_sum_product("bkrh,bkrs->bkhs", rows, d_scores, dtype))
        d_rows = product("bkrs,bskh->bkrh", d_scores, k[:, :stop], dtype)
        dq.append(_by_query(d_rows, stop - start))
    dk, dv = (a.transpose(0, 3, 1, 2) for a in lax.optimization_barrier((dk, dv)))
    return jnp.concatenate(dq, axis=1) * choices.scale, dk, dv, None, None


_attend.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """First query of each block and the one after its last."""
    size = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _scores(
    q: Array, k: Array, segment_ids: Array | None, start: int, stop: int, dtype: Dtype
) -> Array:
    """Scores [B, K, R, stop] of queries start..stop-1; -inf where a key is not seen."""
    queries, keys = jnp.arange(start, stop)[:, None], jnp.arange(stop)[None, :]
    visible = (keys <= queries)[None]  # [1 or B, t, stop]
    if segment_ids is not None:
        own, others = segment_ids[:, start:stop, None], segment_ids[:, None, :stop]
        visible = visible & (own == others)
    scores = product("bkrh,bskh->bkrs", _by_row(q, start, stop), k[:, :stop], dtype)
    groups = q.shape[3]
    # Every query sees itself, so no row is without a finite score.
    return jnp.where(jnp.tile(visible, (1, groups, 1))[:, None], scores, -jnp.inf)


def _dropout(weights: Array, rate: float, key: Array | None, start: int) -> Array:
    """The same weights are dropped each time it is asked for the block that starts at `start`."""
    if not rate:
        return weights
    if key is None:
        raise ValueError(f"dropout_rate is {rate} without a key; pass dropout_key, or a rate of 0")
    kept = jax.random.bernoulli(jax.random.fold_in(key, start), 1 - rate, weights.shape)
    return jnp.where(kept, weights / (1 - rate), 0)


def _by_row(a: Array, start: int, stop: int) -> Array:
    """[B, T, K, G, *] -> [B, K, R, *]: all rows of a block that read one key/value head."""
    batch, _, n_kv_head, _, width = a.shape
    cut = a[:, start:stop].transpose(0, 2, 3, 1, 4)
    return cut.reshape(batch, n_kv_head, -1, width)


def _by_query(rows: Array, count: int) -> Array:
    """[B, K, R, H] -> [B, t, K, G, H]: undoes `_by_row`."""
    batch, n_kv_head, _, head_dim = rows.shape
    return rows.reshape(batch, n_kv_head, -1, count, head_dim).transpose(0, 3, 1, 2, 4)
