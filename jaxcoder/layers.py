"""The parts of a block: Linear, LayerNorm, attention, MLP.

Letters: B batch, T query length, S key length, N query heads, K key/value heads, G = N / K queries
to a key/value head, H head dim, D n_embd, F n_inner, V vocabulary.

dtype rules. A product's operands are of the model's dtype, see products.py. The residual stream,
LayerNorm, softmax and logits are float32 in any.

Source: transformers, ``modeling_gpt_bigcode.py`` and ``modeling_gpt2.py``.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from . import cache as kv_cache
from .cached_attention import cached_attention
from .config import ModelConfig
from .products import FLOAT32, product, weight_product
from .self_attention import self_attention

Array = jax.Array
Dtype = jnp.dtype


class Linear(nn.Module):
    """x [B, T, in] -> float32 [B, T, features]: a weight in the file's [out, in] order, a bias.

    `init_std` is the standard deviation of a fresh weight.
    """

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
        return weight_product(x, weight, self.dtype, bias)


class LayerNorm(nn.Module):
    """Normalise float32 [B, T, D] over D; two passes, because E[x²] − E[x]² cancels.

    `epsilon` is added to the variance.
    """

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

    The backward pass asks for x alone and computes the rest again. Its means over a row are
    products with the weight: as reductions, which XLA's CPU backend fuses with their factors,
    they took 10 times as long (docs/lab-notes.md).
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
        return product("btd,d->bt", a, weight, FLOAT32)[..., None] / x.shape[-1]

    own = d_out * weight[None, None, :]
    d_normed = own - weighted_mean(d_out) - normed * weighted_mean(d_out_normed)
    return d_normed * inverse_deviation, d_out_normed.sum((0, 1)), d_out.sum((0, 1))


def _standardised(epsilon: float, x: Array) -> tuple[Array, Array]:
    """x [B, T, D] with mean 0 and variance 1 in each row, and 1 / its deviation [B, T, 1]."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


_normalise.defvjp(_normalise_forward, _normalise_backward)


class Attention(nn.Module):
    """Causal self-attention of block `layer`; with a cache buffer it appends to it and reads it."""

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
        """x float32 [B, T, D] -> (float32 [B, T, D], buffer with the new keys and values).

        Args:
          x: the normed stream.
          q_slots: int32 [B, T], the slot of each token.
          segment_ids: int32 [B, T] or None: tokens see their own segment only.
          buffer: [B, S, K, 2H], this layer's part of the cache, or None.
          train: dropout on.
        """
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
    """x + attention(ln_1 x), then x + mlp(ln_2 x), on a float32 residual stream; `layer` from 0."""

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
