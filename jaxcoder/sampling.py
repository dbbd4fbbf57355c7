"""From logits to tokens: penalties and filters, then one draw per row.

Sampling parameters are arrays with one entry per row, traced and not static: a new temperature
compiles nothing, and rows of one batch may differ. A draw depends on (seed, sample, position) and
on its own row's logits, so companions in the batch cannot change it.

Filters run in the order of transformers' logits processors: repetition penalty (arXiv:1909.05858),
temperature, top-k, top-p (nucleus, arXiv:1904.09751). They differ in one point: equal logits at a
cut are kept from the lowest id on, so that top-k keeps exactly k.
"""

from numbers import Integral, Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
AnyArray = jax.Array | np.ndarray
"""On a device, or on the host before a call and in it."""

COLDEST, HOTTEST = 1e-4, 1e4
"""Bounds of a temperature other than 0: beyond them float32 cannot tell it from greedy, uniform."""


class SamplingParams(NamedTuple):
    """How each row draws; every field is an array over rows. Made by `sampling_params`."""

    temperature: AnyArray
    """float32 [B]; 0 is greedy."""
    top_k: AnyArray
    """int32 [B]; 0 is off."""
    top_p: AnyArray
    """float32 [B]; 1 is off."""
    repetition_penalty: AnyArray
    """float32 [B]; 1 is off."""
    seed: AnyArray
    """uint32 [B, 2]: high and low word."""
    sample: AnyArray
    """uint32 [B]: which of the n samples of its prompt the row is."""


def sampling_params(
    rows: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    samples: np.ndarray | None = None,
) -> SamplingParams:
    """Check the arguments of one call and spread them over `rows` rows.

    Args:
      rows: B.
      temperature: 0 takes the largest logit (the lowest id among equals), else logits are divided
        by it; from 1e-4 to 1e4.
      top_k: keep the k largest logits; None or 0 keeps all, as does k ≥ V.
      top_p: keep the smallest set of largest probabilities that sums to at least this, in (0, 1];
        None or 1 keeps all.
      repetition_penalty: logits of tokens in the prompt or the text so far are divided by it where
        positive and multiplied where negative; from 1e-4 to 1e4, and 1 is off.
      seed: from 0 up to 2^64 - 1.
      samples: uint32 [B] sample indices, by default 0.

    Raises:
      ValueError: an argument of the wrong type or out of its range.
    """
    if not _is_real(temperature) or not (temperature == 0 or COLDEST <= temperature <= HOTTEST):
        raise ValueError(
            f"temperature is {temperature!r}, expected 0 (greedy) or {COLDEST} to {HOTTEST}"
        )
    if top_k is not None and (not _is_integer(top_k) or not 0 <= top_k < 2**31):
        raise ValueError(f"top_k is {top_k!r}, expected None or 0 (off) or an integer below 2**31")
    if top_p is not None and (not _is_real(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p!r}, expected None (off) or a number above 0 and up to 1")
    if not _is_real(repetition_penalty) or not 1e-4 <= repetition_penalty <= 1e4:
        raise ValueError(
            f"repetition_penalty is {repetition_penalty!r}, expected 1 (off) or 0.0001 to 10000"
        )
    if not _is_integer(seed) or not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed!r}, expected an integer from 0 up to 2**64 - 1")
    seed = int(seed)  # a NumPy integer may be too small for the shift
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    return SamplingParams(
        temperature=np.full(rows, temperature, np.float32),
        top_k=np.full(rows, top_k or 0, np.int32),
        top_p=np.full(rows, 1.0 if top_p is None else top_p, np.float32),
        repetition_penalty=np.full(rows, repetition_penalty, np.float32),
        seed=np.tile(words, (rows, 1)),
        sample=np.zeros(rows, np.uint32) if samples is None else samples.astype(np.uint32),
    )


def process_logits(logits: Array, seen: Array, params: SamplingParams) -> Array:
    """Logits whose softmax is the law a row draws from; excluded tokens are -inf.

    Args:
      logits: float32 [B, V], raw.
      seen: bool [B, V]: tokens in the row's prompt or text so far.
      params: a temperature of 0 leaves the scale and every token as they are.
    """
    penalty = params.repetition_penalty[:, None]
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    logits = jnp.where(seen, penalised, logits)
    sampled = params.temperature > 0
    # The maximum goes first: dividing 50 by 1e-4 and then subtracting would lose what differs.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = shifted / jnp.where(sampled, params.temperature, 1.0)[:, None]
    filtered = sampled & ((params.top_k > 0) | (params.top_p < 1))
    # A sort of the vocabulary costs milliseconds on CPU; greedy and plain sampling skip it.
    return lax.cond(
        jnp.any(filtered),
        lambda: jnp.where(filtered[:, None], _keep_largest(logits, params), logits),
        lambda: logits,
    )


def _keep_largest(logits: Array, params: SamplingParams) -> Array:
    """-inf for all but the tokens that top-k, and of those top-p, keep."""
    vocab_size = logits.shape[-1]
    ids = jnp.broadcast_to(jnp.arange(vocab_size), logits.shape)
    # Stable, so equal logits stand in order of their ids and any prefix is a legal choice.
    descending, order = lax.sort((-logits, ids), num_keys=1, is_stable=True)
    descending = -descending
    rank = jnp.arange(vocab_size)[None, :]
    within_k = (params.top_k[:, None] == 0) | (rank < params.top_k[:, None])
    probs = jax.nn.softmax(jnp.where(within_k, descending, -jnp.inf), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # Rank 0 by name: rounding must not drop the only token that is always kept.
    kept = (rank == 0) | (
        within_k & ((before < params.top_p[:, None]) | (params.top_p[:, None] >= 1))
    )
    last = jnp.sum(kept, axis=-1, keepdims=True) - 1
    cut = jnp.take_along_axis(descending, last, axis=-1)
    cut_id = jnp.take_along_axis(order, last, axis=-1)
    return jnp.where((logits > cut) | ((logits == cut) & (ids <= cut_id)), logits, -jnp.inf)


def draw(logits: Array, params: SamplingParams, positions: Array) -> Array:
    """One token per row from processed logits: int32 [B].

    Args:
      logits: float32 [B, V] from `process_logits`.
      params: temperature, seed and sample are read.
      positions: int32 [B]: the position the token will take; with seed and sample it is the key.
    """

    def sample() -> Array:
        seed, number = jnp.asarray(params.seed), jnp.asarray(params.sample)
        keys = jax.vmap(_key)(seed, number, positions)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        is_sampled = (params.temperature > 0)[:, None]
        return jnp.argmax(jnp.where(is_sampled, logits + noise, logits), axis=-1)

    drawn = lax.cond(jnp.any(params.temperature > 0), sample, lambda: jnp.argmax(logits, axis=-1))
    return drawn.astype(jnp.int32)


def _key(seed: Array, sample: Array, position: Array) -> Array:
    # The generator is named: the process-wide default may be another one.
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, sample), position)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
