"""Tokens in, tokens out: jitted prefill, then chunks of a jitted `lax.scan`, one token a step.

Programs are few. A prompt is right-padded to a length bucket and longer ones go in pieces of at
most `PREFILL_PIECE`; the cache has a capacity bucket and grows into the next when the context does;
a batch is padded to a power of two. Sampling parameters, lengths, budgets and end-of-text ids are
traced, so that nothing else compiles.

The host checks every id and length before anything is traced: JAX clamps indices silently.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .arguments import check_count
from .cache import KVCache, capacity_bucket, grow, init_cache
from .config import ModelConfig
from .model import GPTBigCode
from .sampling import AnyArray, SamplingParams, draw, process_logits

Array = jax.Array

DECODE_STEPS = 16
"""Tokens per decode chunk: text appears, and stop strings are noticed, at most this late."""

SHORTEST_PIECE, PREFILL_PIECE = 32, 1024
"""Length buckets of prefill run from the first to the second by powers of two."""


class DecodeState(NamedTuple):
    """What decoding carries from token to token, for every row; donated to each call."""

    logits: Array
    """float32 [B, V]: raw logits of the next token."""
    seen: Array
    """bool [B, V]: tokens in the prompt or the text so far."""
    cache: KVCache
    """The tokens so far; its lengths are the rows' positions."""
    remaining: Array
    """int32 [B]: tokens the row may still emit; 0 once it has ended."""


class Chunk(NamedTuple):
    """New tokens of every row, on the host."""

    tokens: np.ndarray
    """int32 [B, T]: -1 after a row's end."""
    logprobs: np.ndarray
    """float32 [B, T]: log-softmax of the raw logits at each token."""


@functools.partial(jax.jit, static_argnums=(0,), donate_argnums=(2,))
def prefill(
    model: GPTBigCode, params: dict, state: DecodeState, tokens: Array, counts: Array
) -> DecodeState:
    """Append prompt tokens [B, T], of which row b has counts[b] real ones (0 is allowed)."""
    start = state.cache.lengths
    features, cache = cast(
        tuple[Array, KVCache],
        model.apply({"params": params}, tokens, cache=state.cache, method="features"),
    )
    # The model counted the padding in; lowering the lengths takes it out again.
    cache = cache._replace(lengths=start + counts)
    last = jnp.take_along_axis(features, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = cast(Array, model.apply({"params": params}, last, method="unembed"))
    logits = jnp.where((counts > 0)[:, None], logits, state.logits)

    is_real = jnp.arange(tokens.shape[1])[None, :] < counts[:, None]
    out_of_range = model.config.vocab_size
    rows = jnp.arange(tokens.shape[0])[:, None]
    seen = state.seen.at[rows, jnp.where(is_real, tokens, out_of_range)].set(True, mode="drop")
    return DecodeState(logits, seen, cache, state.remaining)


@functools.partial(jax.jit, static_argnums=(0,), donate_argnums=(2,), static_argnames=("steps",))
def decode_chunk(
    model: GPTBigCode,
    params: dict,
    state: DecodeState,
    sampling: SamplingParams,
    eos_ids: Array,
    stopped: Array,
    *,
    steps: int = DECODE_STEPS,
) -> tuple[DecodeState, Array, Array]:
    """Draw up to `steps` tokens per row, feeding each back.

    Args:
      model: static.
      params: parameter tree.
      state: donated.
      sampling: how each row draws.
      eos_ids: int32 [E]: ids that end a row; -1 for none.
      stopped: bool [B]: rows the host has ended since the last chunk.
      steps: static length of the scan.

    Returns:
      (state, tokens int32 [B, steps], logprobs float32 [B, steps]); tokens are -1 after the end.
    """

    def forward(token: Array, cache: KVCache) -> tuple[Array, KVCache]:
        logits, cache = cast(
            tuple[Array, KVCache],
            model.apply({"params": params}, token[:, None], cache=cache),
        )
        return logits[:, 0], cache

    def step(state: DecodeState, _: None) -> tuple[DecodeState, tuple[Array, Array]]:
        logits, seen, cache, remaining = state
        alive = remaining > 0
        token = draw(process_logits(logits, seen, sampling), sampling, cache.lengths)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
        ended = jnp.any(token[:, None] == eos_ids[None, :], axis=-1)
        remaining = jnp.where(alive & ~ended, remaining - 1, 0)
        seen = seen.at[jnp.arange(len(token)), token].set(True)

        # Once every row has ended the rest of the chunk costs next to nothing.
        start = cache.lengths
        logits, cache = lax.cond(
            jnp.any(remaining > 0), forward, lambda token, cache: (logits, cache), token, cache
        )
        cache = cache._replace(lengths=jnp.where(remaining > 0, start + 1, start))
        return DecodeState(logits, seen, cache, remaining), (jnp.where(alive, token, -1), logprob)

    state = state._replace(remaining=jnp.where(stopped, 0, state.remaining))
    state, (tokens, logprobs) = lax.scan(step, state, None, length=steps)
    return state, tokens.T, logprobs.T


@functools.partial(jax.jit, static_argnums=(1,))
def _grow_state(state: DecodeState, capacity: int) -> DecodeState:
    return state._replace(cache=grow(state.cache, capacity))


def check_request(config: ModelConfig, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Refuse what the model cannot do, before anything is compiled.

    Args:
      config: the model's.
      prompts: lists of ids.
      new_tokens: wanted for each.

    Raises:
      ValueError: an empty prompt, an id that is no integer or outside the vocabulary, a negative
        number of new tokens, or a prompt that with them exceeds n_positions.
    """
    # As an int: a small NumPy integer would wrap around in the sum below.
    new_tokens = check_count("max_new_tokens", new_tokens, least=0)
    for index, prompt in enumerate(prompts):
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise ValueError(f"prompt {index} is empty, expected at least one token")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"prompt {index} is {ids.dtype} of shape {list(ids.shape)}, "
                "expected a flat list of integer ids"
            )
        bad = np.flatnonzero((ids < 0) | (ids >= config.vocab_size))
        if bad.size:
            raise ValueError(
                f"prompt {index}: token {ids[bad[0]]} at position {bad[0]}, "
                f"expected ids from 0 to {config.vocab_size - 1}"
            )
        if ids.size + new_tokens > config.n_positions:
            raise ValueError(
                f"prompt {index}: {ids.size} prompt tokens + {new_tokens} new tokens exceed the "
                f"model's {config.n_positions} positions; shorten the prompt or "
                "lower max_new_tokens (--max-new-tokens)"
            )


def generate_chunks(
    model: GPTBigCode,
    params: dict,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    stopped: np.ndarray,
) -> Iterator[Chunk]:
    """Continue each prompt; yields an empty chunk after prefill, then chunks until all rows end.

    Args:
      model, params: the language model.
      prompts: B ≥ 1 lists of ids, of any lengths; checked by `check_request`.
      sampling: one entry per prompt.
      max_new_tokens: at most this many new tokens per row.
      eos_ids: ids that end a row, themselves emitted.
      stopped: bool [B], the caller's: rows it sets to True, at any time, emit nothing in later
        chunks.

    Raises:
      ValueError: from `check_request`, or logits that are not numbers.
    """
    check_request(model.config, prompts, max_new_tokens)
    max_new_tokens = int(max_new_tokens)
    n_rows = len(prompts)
    batch = 1 << (n_rows - 1).bit_length()
    padding = batch - n_rows
    lengths = np.array([len(prompt) for prompt in prompts] + [0] * padding, np.int32)
    remaining = np.array([max_new_tokens] * n_rows + [0] * padding, np.int32)
    sampling = SamplingParams(*(_pad_rows(field, batch) for field in sampling))
    eos = np.array(list(eos_ids) or [-1], np.int32)

    # No more slots than the prompts need: prefill's attention runs over all of them.
    capacity = capacity_bucket(int(lengths.max()), model.config.n_positions)
    state = _empty_state(model, capacity, remaining)
    for tokens, counts in _pieces(prompts, batch):
        state = prefill(model, params, state, tokens, counts)
    jax.block_until_ready(state.logits)
    yield Chunk(np.zeros((n_rows, 0), np.int32), np.zeros((n_rows, 0), np.float32))

    ended = remaining == 0
    ended[:n_rows] |= stopped
    while not ended.all():
        needed = lengths + np.minimum(remaining, DECODE_STEPS)
        capacity = capacity_bucket(int(needed[~ended].max()), model.config.n_positions)
        if capacity > state.cache.capacity:
            state = _grow_state(state, capacity)
        state, tokens, logprobs = decode_chunk(model, params, state, sampling, eos, ended)
        tokens, logprobs = np.asarray(tokens), np.asarray(logprobs)
        emitted = (tokens >= 0).sum(axis=1)
        if np.isnan(logprobs[tokens >= 0]).any():
            raise ValueError("the model produced logits that are not numbers; check its weights")
        lengths = lengths + emitted.astype(np.int32)
        remaining = remaining - emitted.astype(np.int32)
        ended = ended | (remaining == 0) | np.isin(tokens, eos[eos >= 0]).any(axis=1)
        yield Chunk(tokens[:n_rows], logprobs[:n_rows])
        ended[:n_rows] |= stopped


def _pad_rows(field: AnyArray, batch: int) -> np.ndarray:
    """Repeat the last row up to `batch` rows; the copies belong to rows that emit nothing."""
    extra = np.repeat(field[-1:], batch - len(field), axis=0)
    return np.concatenate([field, extra])


def _empty_state(model: GPTBigCode, capacity: int, remaining: np.ndarray) -> DecodeState:
    batch, vocab_size = len(remaining), model.config.vocab_size
    return DecodeState(
        logits=jax.device_put(np.zeros((batch, vocab_size), np.float32)),
        seen=jax.device_put(np.zeros((batch, vocab_size), np.bool_)),
        cache=init_cache(model.config, batch, capacity, model.dtype),
        remaining=jax.device_put(remaining),
    )


def length_bucket(tokens: int) -> int:
    """The padded length of a prefill piece that holds `tokens`: a power of two, 32 to 1024."""
    return min(PREFILL_PIECE, max(SHORTEST_PIECE, 1 << (tokens - 1).bit_length()))


def _pieces(
    prompts: Sequence[Sequence[int]], batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut right-padded prompts into (tokens [B, T], counts [B]), T a length bucket."""
    longest = max(len(prompt) for prompt in prompts)
    start = 0
    while start < longest:
        length = length_bucket(longest - start)
        tokens, counts = np.zeros((batch, length), np.int32), np.zeros(batch, np.int32)
        for row, prompt in enumerate(prompts):
            piece = prompt[start : start + length]
            tokens[row, : len(piece)] = piece
            counts[row] = len(piece)
        yield tokens, counts
        start += length
