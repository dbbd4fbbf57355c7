"""Attention of whole sequences: equal to the plain one, in values and gradients, at any length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcoder import self_attention

# The same float32 sums in another order, on values of order 1.
REORDERED_TOLERANCE = 2e-6
# bfloat16 has 3 digits.
BFLOAT16_TOLERANCE = 0.03
SCALE = 0.3


def arrays(length: int, *, n_head: int = 4, n_kv_head: int = 1) -> dict[str, np.ndarray]:
    """Queries, keys, values, two segments a row, and a gradient to take back."""
    rng = np.random.default_rng(length)
    shapes = {"q": n_head, "k": n_kv_head, "v": n_kv_head, "d_out": n_head}
    values = {
        name: rng.standard_normal((2, length, heads, 8)).astype(np.float32)
        for name, heads in shapes.items()
    }
    border = rng.integers(1, max(length, 2), 2)
    segments = (np.arange(length)[None, :] >= border[:, None]).astype(np.int32) + 1
    return values | {"segment_ids": segments}


def plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    kept: np.ndarray | None = None,
) -> jax.Array:
    """The definition, all scores at once; `kept` [B, N, T, T] multiplies the softmax's weights."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(a, groups, axis=2) for a in (k, v))
    visible = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))[None, None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    scores = jnp.einsum("btnh,bsnh->bnts", q * SCALE, k, precision="highest")
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    weights = weights if kept is None else weights * kept
    return jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")


def blocked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    *,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    return self_attention.self_attention(q, k, v, scale=SCALE, dtype=dtype, segment_ids=segment_ids)


def value_and_gradients(attend, a: dict[str, np.ndarray], *, segmented: bool) -> list[np.ndarray]:
    """The output and the gradients in q, k and v; compiled afresh, for the block size of now."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        out, back = jax.vjp(
            lambda *qkv: attend(*qkv, a["segment_ids"] if segmented else None), q, k, v
        )
        return out, *back(jnp.asarray(a["d_out"]))

    return jax.device_get(jax.jit(both)(a["q"], a["k"], a["v"]))


def largest_difference(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """In units of the largest expected value of each array."""
    pairs = zip(got, expected, strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 queries, so that short sequences have many."""
    monkeypatch.setattr(self_attention, "_LEAST_BLOCK", 4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_values_and_gradients_equal_plain_attention(
    length: int, n_kv_head: int, segmented: bool
) -> None:
    """One block, whole blocks, a last block that is shorter; one, some, all key/value heads."""
    a = arrays(length, n_kv_head=n_kv_head)
    got = value_and_gradients(blocked, a, segmented=segmented)
    expected = value_and_gradients(plain, a, segmented=segmented)
    for array, like in zip(got, (a["d_out"], a["q"], a["k"], a["v"]), strict=True):
        assert array.shape == like.shape
        assert array.dtype == np.float32
    if length == 1:  # the one weight is 1 whatever the score
        got, expected = [got[0], got[3]], [expected[0], expected[3]]
    assert largest_difference(got, expected) <= REORDERED_TOLERANCE


@pytest.mark.usefixtures("small_blocks")
def test_segments_count() -> None:
    """Control of the test above."""
    a = arrays(11)
    together, apart = (value_and_gradients(blocked, a, segmented=s) for s in (False, True))
    assert largest_difference(apart, together) > 0.1


@pytest.mark.usefixtures("small_blocks")
def test_bfloat16_operands_stay_near_float32() -> None:
    a = arrays(11)
    expected = value_and_gradients(plain, a, segmented=True)

    def in_bfloat16(*inputs: jax.Array) -> jax.Array:
        return blocked(*inputs, dtype=jnp.bfloat16)

    got = value_and_gradients(in_bfloat16, a, segmented=True)
    assert REORDERED_TOLERANCE < largest_difference(got, expected) <= BFLOAT16_TOLERANCE


def test_blocks_cover_each_query_once_and_are_few() -> None:
    for length in (1, 255, 256, 257, 1024, 2048, 2049, 8192):
        blocks = self_attention._blocks(length)
        starts, stops = zip(*blocks, strict=True)
        assert (0, *stops[:-1]) == starts
        assert stops[-1] == length
        assert len(blocks) <= 8


RATE = 0.3
DROPOUT = {"dropout_rate": RATE, "dropout_key": jax.random.key(5)}


def dropped_weights(length: int, *, n_kv_head: int = 1) -> np.ndarray:
    """What is left of weights that were all equal, [B, 4, T, T]: the values are unit vectors."""
    q, k = (jnp.zeros((2, length, heads, length)) for heads in (4, n_kv_head))
    v = jnp.broadcast_to(jnp.eye(length)[None, :, None, :], k.shape)
    attend = functools.partial(self_attention.self_attention, scale=SCALE, dtype=jnp.float32)
    out = np.asarray(attend(q, k, v, **DROPOUT))
    return out.transpose(0, 2, 1, 3)


@pytest.mark.usefixtures("small_blocks")
def test_weights_are_dropped_at_the_rate_and_the_rest_scaled_up() -> None:
    length = 40
    weights = dropped_weights(length)
    visible = np.tril(np.ones((length, length), bool))
    assert not weights[..., ~visible].any()
    kept = weights * np.arange(1, length + 1)[:, None]  # before: 1 / (number of visible tokens)
    shares = (kept[..., visible] == 0).mean(axis=-1)  # of each row and head, of 820 weights
    assert np.abs(shares - RATE).max() < 5 * np.sqrt(RATE * (1 - RATE) / 820)
    assert np.allclose(kept[kept != 0], 1 / (1 - RATE), rtol=1e-4)
    blocks = [weights[..., start : start + 4, :4] for start in range(4, length, 4)]
    assert not any(np.array_equal(blocks[0] > 0, other > 0) for other in blocks[1:])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_the_backward_pass_drops_what_the_forward_pass_dropped(n_kv_head: int) -> None:
    """Against the plain form with the weights seen to be dropped; another key as control."""
    length = 11
    a = arrays(length, n_kv_head=n_kv_head)
    mask = dropped_weights(length, n_kv_head=n_kv_head) > 0
    kept = mask / (1 - RATE)

    def dropping(q, k, v, segment_ids, **changed):
        return self_attention.self_attention(
            q,
            k,
            v,
            scale=SCALE,
            dtype=jnp.float32,
            segment_ids=segment_ids,
            **DROPOUT | changed,
        )

    expected = value_and_gradients(functools.partial(plain, kept=kept), a, segmented=True)
    got = value_and_gradients(dropping, a, segmented=True)
    assert largest_difference(got, expected) <= 1e-4
    other = functools.partial(dropping, dropout_key=jax.random.key(6))
    assert largest_difference(value_and_gradients(other, a, segmented=True), expected) > 0.1


@pytest.mark.parametrize(("rate", "dropped"), [(1e-6, 0), (0.999999, 2 * 4 * 16)])
def test_rates_near_none_and_near_all(rate: float, dropped: int) -> None:
    """Drawn with 16 bits, the lowest rates wrapped around and dropped every weight."""
    weights = jnp.ones((2, 4, 4, 4))
    left = self_attention._dropout(weights, rate, jax.random.key(0), 0)
    assert int((left == 0).sum()) == dropped
    assert np.isfinite(left).all()


def test_dropout_without_a_key_is_refused() -> None:
    """JAX's own words were about the type of a key."""
    given = arrays(3)
    with pytest.raises(ValueError, match=r"dropout_rate is 0\.5 without a key; pass dropout_key"):
        self_attention.self_attention(
            *(given[name] for name in "qkv"), scale=SCALE, dtype=jnp.float32, dropout_rate=0.5
        )
