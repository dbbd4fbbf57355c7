"""The parts of a block: the product with a weight, LayerNorm, attention, MLP.

Letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K queries
to a key/value head, H head dim, D n_embd, F n_inner, V vocabulary.

dtype rules. In float32 every product carries precision HIGHEST, because GPUs and TPUs default to
less. In bfloat16 the operands of a product are bfloat16 and its accumulation is float32. The
residual stream, LayerNorm, softmax and logits are float32 in both.

Source: transformers, ``modeling_gpt_bigcode.py`` and ``modeling_gpt2.py``.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from . import cache as kv_cache
from .config import ModelConfig
from .self_attention import product, self_attention

Array = jax.Array
Dtype = jnp.dtype

# Above this many queries attention runs in blocks of as many, so that the scores held at once are
# N * QUERY_BLOCK * S and not N * T * S.
QUERY_BLOCK = 1024

# Up to this many rows a product is written weight first: jax 0.7.2 on CPU otherwise transposes the
# whole weight for every token (measured in docs/decisions/0003).
_FEW_ROWS = 16


def weight_product(x: Array, weight: Array, dtype: Dtype) -> Array:
    """x [..., in] times weight [out, in] -> float32 [..., out]: the only product with a weight."""
    rows = x.reshape(-1, x.shape[-1])
    if weight.dtype != dtype:
        out = _mixed_product(rows, weight, dtype)
    elif len(rows) <= _FEW_ROWS:
        out = product("oi,ri->or", weight, rows, dtype).T
    else:
        out = product("ri,oi->ro", rows, weight, dtype)
    return out.reshape(*x.shape[:-1], weight.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed_product(rows: Array, weight: Array, dtype: Dtype) -> Array:
    """rows [R, in], weight [out, in] of another dtype -> float32 [R, out].

    Left to itself, JAX multiplies the float32 gradient with `dtype` operands and rounds what comes
    out to `dtype`; here the gradient is rounded before the product, whose sums stay float32.
    """
    return product("ri,oi->ro", rows, weight, dtype)


def _mixed_forward(rows: Array, weight: Array, dtype: Dtype) -> tuple[Array, tuple[Array, Array]]:
    rows = rows.astype(dtype)
    return product("ri,oi->ro", rows, weight, dtype), (rows, weight)


def _mixed_backward(dtype: Dtype, kept: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    rows, weight = kept
    d_out = d_out.astype(dtype)
    d_weight = product("ro,ri->oi", d_out, rows, dtype)
    return product("ro,oi->ri", d_out, weight, dtype), d_weight.astype(weight.dtype)


_mixed_product.defvjp(_mixed_forward, _mixed_backward)


class Linear(nn.Module):
    """x [B, T, in] -> float32 [B, T, features]: a weight in the file's [out, in] order, a bias."""

    features: int
    init_std: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.features, x.shape[-1])
        normal = nn.initializers.normal(self.init_std)
        weight = self.param("weight", normal, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return weight_product(x, weight, self.dtype) + bias.astype(jnp.float32)[None, None, :]


class LayerNorm(nn.Module):
    """Normalise float32 [B, T, D] over D; two passes, because E[x²] − E[x]² cancels."""

    epsilon: float
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        weight = self.param("weight", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        return _normalise(self.epsilon, x, weight.astype(jnp.float32), bias.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(epsilon: float, x: Array, weight: Array, bias: Array) -> Array:
    """x [B, T, D] with mean 0 and variance 1 in each row, times weight [D], plus bias [D].

    The backward pass keeps x and computes the rest again. Its means over a row are products with
    the weight: as reductions, which XLA's CPU backend fuses with their factors, they took 10 times
    as long (docs/lab-notes.md).
    """
    normed, _ = _standardised(epsilon, x)
    return normed * weight[None, None, :] + bias[None, None, :]


def _normalise_forward(
    epsilon: float, x: Array, weight: Array, bias: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _normalise(epsilon, x, weight, bias), (x, weight)


def _normalise_backward(
    epsilon: float, kept: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array, Array]:
    x, weight = kept
    normed, inverse_deviation = _standardised(epsilon, x)
    d_out_normed = d_out * normed

    def weighted_mean(a: Array) -> Array:
        return product("btd,d->bt", a, weight, jnp.float32)[..., None] / x.shape[-1]

    own = d_out * weight[None, None, :]
    d_normed = own - weighted_mean(d_out) - normed * weighted_mean(d_out_normed)
    return d_normed * inverse_deviation, d_out_normed.sum((0, 1)), d_out.sum((0, 1))


def _standardised(epsilon: float, x: Array) -> tuple[Array, Array]:
    """x [B, T, D] with mean 0 and variance 1 in each row, and 1 / its deviation [B, T, 1]."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


_normalise.defvjp(_normalise_forward, _normalise_backward)


def cached_attention(
    q: Array, k: Array, v: Array, *, q_slots: Array, scale: float, dtype: Dtype
) -> Array:
    """softmax(scale · q·k) v over the slots up to each query's own.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H]; K divides N, and head n reads key/value head n // (N / K).
      q_slots: int32 [B, T]: the key slot each query sits in; it sees slots up to that one.
      scale: factor on the scores.
      dtype: of the operands; scores, softmax and sums are float32.

    Returns:
      float32 [B, T, N, H].
    """
    length, n_head, n_kv_head = q.shape[1], q.shape[2], k.shape[2]
    key_slots = jnp.arange(k.shape[1])

    def attend(queries: Array, slots: Array) -> Array:
        visible = key_slots[None, None, :] <= slots[:, :, None]  # [B, T, S]
        rows = _rows_by_kv_head(queries * scale, n_kv_head)
        scores = product("bkrh,bskh->bkrs", rows, k, dtype)
        # Every query sees itself, so no row is without a finite score.
        is_visible = jnp.tile(visible, (1, n_head // n_kv_head, 1))[:, None]
        scores = jnp.where(is_visible, scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        # Divided after the product: H columns, not S.
        mixed = product("bkrs,bskh->bkrh", weights, v, dtype)
        return _heads_of_rows(mixed / weights.sum(axis=-1, keepdims=True), n_head)

    blocks = [
        attend(q[:, start : start + QUERY_BLOCK], q_slots[:, start : start + QUERY_BLOCK])
        for start in range(0, length, QUERY_BLOCK)
    ]
    return jnp.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]


def _rows_by_kv_head(q: Array, n_kv_head: int) -> Array:
    """[B, T, N, H] -> [B, K, G·T, H]: all rows that read one key/value head, as one matrix.

    Measured against a product with separate axes: 17 % fewer milliseconds per token at 4,096 slots.
    """
    batch, length, n_head, head_dim = q.shape
    grouped = q.reshape(batch, length, n_kv_head, n_head // n_kv_head, head_dim)
    return grouped.transpose(0, 2, 3, 1, 4).reshape(batch, n_kv_head, -1, head_dim)


def _heads_of_rows(rows: Array, n_head: int) -> Array:
    """[B, K, G·T, H] -> [B, T, N, H]: undoes `_rows_by_kv_head`."""
    batch, n_kv_head, _, head_dim = rows.shape
    grouped = rows.reshape(batch, n_kv_head, n_head // n_kv_head, -1, head_dim)
    return grouped.transpose(0, 3, 1, 2, 4).reshape(batch, -1, n_head, head_dim)


class Attention(nn.Module):
    """Causal self-attention of one block; with a cache buffer it appends to it and reads it."""

    config: ModelConfig
    layer: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        q_slots: Array,
        segment_ids: Array | None,
        buffer: Array | None,
        train: bool,
    ) -> tuple[Array, Array | None]:
        """x float32 [B, T, D] -> (float32 [B, T, D], buffer with the new keys and values)."""
        config = self.config
        n, k_heads, h = config.n_head, config.n_kv_head, config.head_dim
        batch, length = x.shape[:2]
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        std = config.initializer_range
        q = Linear(n * h, std, **types, name="q")(x).reshape(batch, length, n, h)
        kv = Linear(k_heads * 2 * h, std, **types, name="kv")(x)
        kv = kv.reshape(batch, length, k_heads, 2 * h)
        if buffer is not None:
            buffer = kv_cache.append(buffer, q_slots[:, 0], kv)
            kv = buffer
        keys, values = kv_cache.keys_and_values(kv)
        how = {"scale": config.attention_scale(self.layer), "dtype": self.dtype}
        if buffer is None:
            rate = config.attn_pdrop if train else 0.0
            mixed = self_attention(
                q,
                keys,
                values,
                **how,
                segment_ids=segment_ids,
                dropout_rate=rate,
                dropout_key=self.make_rng("dropout") if rate else None,
            )
        else:
            mixed = cached_attention(q, keys, values, **how, q_slots=q_slots)
        out_std = std / (2 * config.n_layer) ** 0.5
        out = Linear(config.n_embd, out_std, **types, name="c_proj")(
            mixed.reshape(batch, length, n * h)
        )
        return nn.Dropout(config.resid_pdrop, deterministic=not train)(out), buffer


class MLP(nn.Module):
    """float32 [B, T, D] -> [B, T, F], GELU, back to [B, T, D]."""

    config: ModelConfig
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        config = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inner = Linear(config.n_inner, config.initializer_range, **types, name="c_fc")(x)
        approximate = config.activation_function != "gelu"
        inner = jax.checkpoint(functools.partial(jax.nn.gelu, approximate=approximate))(inner)
        out_std = config.initializer_range / (2 * config.n_layer) ** 0.5
        out = Linear(config.n_embd, out_std, **types, name="c_proj")(inner)
        return nn.Dropout(config.resid_pdrop, deterministic=not train)(out)


class Block(nn.Module):
    """x + attention(ln_1 x), then x + mlp(ln_2 x), on a float32 residual stream."""

    config: ModelConfig
    layer: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        q_slots: Array,
        segment_ids: Array | None,
        buffer: Array | None,
        train: bool,
    ) -> tuple[Array, Array | None]:
        config, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        epsilon = config.layer_norm_epsilon
        mixed, buffer = Attention(config, self.layer, **types, name="attn")(
            LayerNorm(epsilon, self.param_dtype, name="ln_1")(x),
            q_slots=q_slots,
            segment_ids=segment_ids,
            buffer=buffer,
            train=train,
        )
        x = x + mixed
        normed = LayerNorm(epsilon, self.param_dtype, name="ln_2")(x)
        return x + MLP(config, **types, name="mlp")(normed, train=train), buffer
