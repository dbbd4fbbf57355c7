"""The cache changes nothing: any way of feeding tokens piece by piece equals one full forward.

Stale slots (beyond a row's length) may hold any finite garbage. Not-a-numbers are another matter:
a stale slot has attention weight 0, and 0 times not-a-number is not 0. Nothing writes one there
unless the model's own output is already broken.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import MHA, MQA, full_logits, random_params, random_tokens

from jaxcoder import cache as cache_module
from jaxcoder.cache import KVCache, append, capacity_bucket, grow, init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.model import GPTBigCode

# The same float32 sums in another order, on logits of order 5.
TOLERANCE = 2e-5
LENGTH = 28

both_layouts = pytest.mark.parametrize("config", [MQA, MHA], ids=["mqa", "mha"])


@functools.partial(jax.jit, static_argnums=0)
def _extend(
    model: GPTBigCode,
    params: dict,
    cache: KVCache,
    tokens: np.ndarray,
    counts: np.ndarray,
    shift: int,
) -> tuple[jax.Array, KVCache]:
    positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1])[None, :] + shift
    logits, after = model.apply({"params": params}, tokens, cache=cache, positions=positions)
    return logits, after._replace(lengths=cache.lengths + counts)


def extend(
    config: ModelConfig,
    params: dict,
    cache: KVCache,
    tokens: np.ndarray,
    *,
    counts: np.ndarray | None = None,
    shift: int = 0,
) -> tuple[np.ndarray, KVCache]:
    """Append tokens [B, T], of which row b keeps counts[b]; logits [B, T, V] and the cache."""
    if counts is None:
        counts = np.full(len(tokens), tokens.shape[1])
    model = GPTBigCode(config)
    logits, cache = _extend(model, params, cache, tokens, counts.astype(np.int32), shift)
    return np.asarray(logits), cache


def decode_from_every_split(config: ModelConfig, *, shift: int = 0) -> tuple[np.ndarray, int]:
    """Row b is prefilled with b + 1 tokens and decodes the rest one by one.

    Returns:
      The largest error against the full forward in each row, and how many logits were compared.
    """
    params, tokens = random_params(config), random_tokens(LENGTH)
    expected = full_logits(config, params, tokens[None])[0]
    rows = LENGTH - 1
    prefilled = np.arange(1, LENGTH)
    errors, compared = np.zeros(rows), 0

    cache = init_cache(config, rows, 32, np.float32)
    logits, cache = extend(config, params, cache, np.tile(tokens, (rows, 1)), counts=prefilled)
    for row in range(rows):
        errors[row] = np.abs(logits[row, : row + 1] - expected[: row + 1]).max()
    for step in range(rows):
        at = prefilled + step
        unfinished = at < LENGTH
        token = tokens[np.minimum(at, LENGTH - 1)][:, None]
        logits, cache = extend(
            config, params, cache, token, counts=unfinished.astype(int), shift=shift
        )
        for row in np.flatnonzero(unfinished):
            errors[row] = max(errors[row], np.abs(logits[row, 0] - expected[at[row]]).max())
            compared += 1
    assert np.array_equal(cache.lengths, np.full(rows, LENGTH))
    return errors, compared


@both_layouts
def test_prefill_then_decode_equals_the_full_forward_for_every_split(config: ModelConfig) -> None:
    """All splits are rows of one batch, so rows also stand at different lengths all the time."""
    errors, compared = decode_from_every_split(config)
    assert compared == LENGTH * (LENGTH - 1) // 2
    assert errors.max() <= TOLERANCE


def test_a_position_off_by_one_is_far_from_the_full_forward() -> None:
    """Control: every split would notice a token decoded at the next position."""
    errors, _ = decode_from_every_split(MQA, shift=1)
    assert errors.min() > 100 * TOLERANCE


@both_layouts
def test_one_row_decoded_alone_equals_the_full_forward(config: ModelConfig) -> None:
    """A batch of one multiplies weights in another order than a batch of many."""
    params, tokens = random_params(config), random_tokens(1, LENGTH)
    expected = full_logits(config, params, tokens)
    cache = init_cache(config, 1, 32, np.float32)
    for t in range(LENGTH):
        logits, cache = extend(config, params, cache, tokens[:, t : t + 1])
        assert np.abs(logits[:, 0] - expected[:, t]).max() <= TOLERANCE


@pytest.mark.parametrize("piece", [1, 7, 64])
@both_layouts
def test_prefill_in_pieces_equals_the_full_forward(config: ModelConfig, piece: int) -> None:
    """Two rows of 70 tokens; the last piece is shorter than the others."""
    config = dataclasses.replace(config, n_positions=80)
    params, tokens = random_params(config), random_tokens(2, 70)
    expected = full_logits(config, params, tokens)
    cache = init_cache(config, 2, 80, np.float32)
    for start in range(0, 70, piece):
        part = tokens[:, start : start + piece]
        logits, cache = extend(config, params, cache, part)
        assert np.abs(logits - expected[:, start : start + piece]).max() <= TOLERANCE
    assert np.array_equal(cache.lengths, [70, 70])


@both_layouts
def test_lowered_lengths_refilled_with_other_tokens_equal_a_fresh_cache(
    config: ModelConfig,
) -> None:
    """Rolling back is lowering `lengths`: bitwise, whatever the abandoned tokens were."""
    params = random_params(config)
    common, abandoned, other = (random_tokens(2, 8, seed=seed) for seed in (1, 2, 3))
    empty = init_cache(config, 2, 32, np.float32)
    _, short = extend(config, params, empty, common)
    _, rolled_back = extend(config, params, short, abandoned)
    rolled_back = rolled_back._replace(lengths=rolled_back.lengths - 8)
    for row in range(2):
        assert not np.array_equal(rolled_back.layers[0][row, 8:16], short.layers[0][row, 8:16])
    for _ in range(2):
        expected, short = extend(config, params, short, other)
        got, rolled_back = extend(config, params, rolled_back, other)
        assert np.array_equal(got, expected)


@both_layouts
def test_garbage_in_stale_slots_is_never_seen(config: ModelConfig) -> None:
    """Bitwise, with finite garbage so large that the smallest weight on it would show."""
    params, tokens = random_params(config), random_tokens(2, 8)
    counts = np.array([8, 3])
    cache = init_cache(config, 2, 32, np.float32)
    _, cache = extend(config, params, cache, tokens, counts=counts)
    stale = (np.arange(32)[None, :] >= counts[:, None])[:, :, None, None]
    garbage = cache._replace(layers=tuple(jnp.where(stale, 1e9, layer) for layer in cache.layers))
    for seed in (2, 3):
        more = random_tokens(2, 1, seed=seed)
        expected, cache = extend(config, params, cache, more)
        got, garbage = extend(config, params, garbage, more)
        assert np.array_equal(got, expected)

    visible = cache._replace(lengths=cache.lengths + 1)
    seen, _ = extend(config, params, visible, more)
    seen_garbage, _ = extend(config, params, garbage._replace(lengths=visible.lengths), more)
    assert not np.array_equal(seen, seen_garbage), "control: a visible slot must matter"


@both_layouts
def test_growth_copies_and_then_decodes_the_same(config: ModelConfig) -> None:
    params, tokens = random_params(config), random_tokens(2, 8)
    counts = np.array([8, 5])
    _, cache = extend(config, params, init_cache(config, 2, 16, np.float32), tokens, counts=counts)
    larger = grow(cache, 32)
    assert (cache.capacity, larger.capacity) == (16, 32)
    assert np.array_equal(larger.lengths, counts)
    for small, large in zip(cache.layers, larger.layers, strict=True):
        assert np.array_equal(large[:, :16], small)
        assert not np.asarray(large[:, 16:]).any()
    for seed in (2, 3):
        more = random_tokens(2, 1, seed=seed)
        expected, cache = extend(config, params, cache, more)
        got, larger = extend(config, params, larger, more)
        assert np.abs(got - expected).max() <= TOLERANCE


def test_append_writes_at_each_rows_length_and_drops_what_does_not_fit() -> None:
    """Slot by slot against NumPy; row 1 crosses the capacity, row 2 is full already."""
    rng = np.random.default_rng(0)
    buffer = rng.standard_normal((4, 8, 1, 6)).astype(np.float32)
    kv = rng.standard_normal((4, 4, 1, 6)).astype(np.float32)
    lengths = np.array([0, 6, 8, 3], np.int32)
    expected = buffer.copy()
    for row, length in enumerate(lengths):
        for t in range(4):
            if length + t < 8:
                expected[row, length + t] = kv[row, t]
    got = append(jnp.asarray(buffer), jnp.asarray(lengths), jnp.asarray(kv))
    assert np.array_equal(got, expected)


@both_layouts
def test_a_padded_piece_across_the_capacity_corrupts_nothing(config: ModelConfig) -> None:
    """Only padding may lie beyond the last slot, and it may not wrap around or overwrite."""
    params, tokens = random_params(config), random_tokens(1, 20)
    expected = full_logits(config, params, tokens)
    cache = init_cache(config, 1, 20, np.float32)
    _, cache = extend(config, params, cache, tokens[:, :12])
    padded = np.zeros((1, 16), np.int32)
    padded[:, :6] = tokens[:, 12:18]
    logits, cache = extend(config, params, cache, padded, counts=np.array([6]))
    assert np.abs(logits[:, :6] - expected[:, 12:18]).max() <= TOLERANCE
    for t in (18, 19):
        logits, cache = extend(config, params, cache, tokens[:, t : t + 1])
        assert np.abs(logits[:, 0] - expected[:, t]).max() <= TOLERANCE
    assert np.array_equal(cache.lengths, [20])


@both_layouts
def test_an_empty_cache_has_the_documented_layout(config: ModelConfig) -> None:
    cache = init_cache(config, 5, 16, jnp.bfloat16)
    assert len(cache.layers) == config.n_layer
    for layer in cache.layers:
        assert layer.shape == (5, 16, config.n_kv_head, 2 * config.head_dim)
        assert layer.dtype == jnp.bfloat16
        assert not np.asarray(layer, np.float32).any()
    assert cache.lengths.dtype == jnp.int32
    assert np.array_equal(cache.lengths, np.zeros(5))
    assert cache.capacity == 16


def test_the_cache_holds_keys_and_values_in_the_models_dtype() -> None:
    """A bfloat16 cache stays bfloat16 when a bfloat16 model appends to it."""
    model = GPTBigCode(MQA, dtype=jnp.bfloat16)
    cache = init_cache(MQA, 1, 16, jnp.bfloat16)
    _, after = jax.eval_shape(
        functools.partial(_extend.__wrapped__, model),
        random_params(MQA),
        cache,
        random_tokens(1, 4),
        np.array([4], np.int32),
        0,
    )
    assert {layer.dtype for layer in after.layers} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("tokens", "n_positions", "expected"),
    [
        (1, 8192, 256),
        (256, 8192, 256),
        (257, 8192, 512),
        (4097, 8192, 8192),
        (8192, 8192, 8192),
        (600, 1000, 1000),
        (1000, 1000, 1000),
        (1, 100, 100),
    ],
)
def test_capacity_buckets_double_up_to_the_models_positions(
    tokens: int, n_positions: int, expected: int
) -> None:
    assert cache_module.SMALLEST_CAPACITY == 256
    assert capacity_bucket(tokens, n_positions) == expected
