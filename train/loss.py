"""Cross-entropy over a large vocabulary, a chunk of tokens at a time.

The logits of all tokens at once would be the largest array of a step by far (8 x 1,024 tokens and
49,152 words: 1.6 GB). Here those of `chunk` tokens are held, and the gradient is taken while they
are: each logit is computed once, where a checkpointed loss would compute it twice.

Letters: N tokens, D n_embd, V vocabulary, C tokens in a chunk.

Source of the z-loss: Chowdhery et al. arXiv:2204.02311 (PaLM).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcoder.products import product, row_sum_product, weight_product

Array = jax.Array


class _Choices(NamedTuple):
    """What the loss does not depend on differentiably."""

    chunk: int
    dtype: jnp.dtype
    z_loss: float


def chunked_cross_entropy(
    features: Array,
    head: Array,
    *,
    targets: Array,
    weights: Array,
    chunk: int,
    dtype: jnp.dtype,
    z_loss: float = 0.0,
) -> Array:
    """Sum over tokens of weight * (-log softmax(head · features)[target] + z_loss · logsumexp²).

    Differentiable once, in features and head; weights take part as constants.

    Args:
      features: float32 [N, D].
      head: [V, D], the output embedding.
      targets: int32 [N].
      weights: float32 [N]; a token of weight 0 adds exactly nothing, unless its own loss is not
        finite.
      chunk: tokens whose logits are held at once, float32 [chunk, V].
      dtype: of the operands of products; all else is float32.
      z_loss: factor on the squared log normaliser, which keeps logits from drifting.

    Returns:
      float32 scalar; 0 where all weights are 0.
    """
    choices = _Choices(min(chunk, len(targets)), jnp.dtype(dtype), z_loss)
    return _loss(choices, features, head, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(choices: _Choices, features: Array, head: Array, targets: Array, weights: Array) -> Array:
    def add_chunk(total: Array, tokens: tuple[Array, Array, Array]) -> tuple[Array, None]:
        chunk_loss, _ = _chunk_loss(choices, head, *tokens)
        return total + chunk_loss, None

    total, _ = lax.scan(add_chunk, jnp.float32(0), _chunks(choices, features, targets, weights))
    return total


def _loss_and_gradients(
    choices: _Choices, features: Array, head: Array, targets: Array, weights: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The loss, and as residuals its gradients in features and head."""

    def add_chunk(
        carry: tuple[Array, Array], tokens: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        total, d_head = carry
        chunk_loss, d_logits = _chunk_loss(choices, head, *tokens)
        d_features = product("cv,vd->cd", d_logits, head, choices.dtype)
        d_head = d_head + row_sum_product("cd,cv->dv", tokens[0], d_logits, choices.dtype)
        return (total + chunk_loss, d_head), d_features

    start = (jnp.float32(0), jnp.zeros(head.T.shape, jnp.float32))
    chunks = _chunks(choices, features, targets, weights)
    (total, d_head), d_features = lax.scan(add_chunk, start, chunks)
    d_features = d_features.reshape(-1, features.shape[-1])[: len(features)]
    d_head = lax.optimization_barrier(d_head).T
    return total, (d_features, d_head.astype(head.dtype))


def _scaled_gradients(
    choices: _Choices, gradients: tuple[Array, Array], scale: Array
) -> tuple[Array, Array, None, None]:
    d_features, d_head = gradients
    return d_features * scale, (d_head * scale).astype(d_head.dtype), None, None


_loss.defvjp(_loss_and_gradients, _scaled_gradients)


def _chunks(
    choices: _Choices, features: Array, targets: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Features [N/C, C, D], targets and weights [N/C, C]; the last chunk is padded, weight 0."""
    extra = -len(targets) % choices.chunk

    def cut(a: Array) -> Array:
        padded = jnp.pad(a, ((0, extra),) + ((0, 0),) * (a.ndim - 1)) if extra else a
        return padded.reshape(-1, choices.chunk, *a.shape[1:])

    return cut(features), cut(targets), cut(weights)


def _chunk_loss(
    choices: _Choices, head: Array, features: Array, targets: Array, weights: Array
) -> tuple[Array, Array]:
    """The loss of one chunk and its gradient in the logits [C, V]."""
    logits = weight_product(features, head, choices.dtype)
    largest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    sums = exponentials.sum(axis=-1, keepdims=True)
    normaliser = (jnp.log(sums) + largest)[:, 0]
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    loss = jnp.sum(weights * (normaliser - chosen + choices.z_loss * jnp.square(normaliser)))
    # d(normaliser) is the softmax.
    factor = weights * (1 + 2 * choices.z_loss * normaliser)
    is_target = targets[:, None] == jnp.arange(logits.shape[-1])[None, :]
    softmax_part = exponentials * (factor[:, None] / sums)
    return loss, softmax_part - jnp.where(is_target, weights[:, None], 0)
