"""Products: the same numbers in every form, and bfloat16 operands that stay so on CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcoder.products import product, row_sum_product, weight_product
from jaxcoder.self_attention import self_attention
from train.loss import chunked_cross_entropy

BFLOAT16 = jnp.dtype("bfloat16")


def random(*shape: int, seed: int = 0, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("spec", "a_shape", "b_shape"),
    [
        ("ro,ri->oi", (40, 8), (40, 12)),
        ("cd,cv->dv", (40, 8), (40, 12)),
        ("bkrh,bkrs->bkhs", (2, 3, 40, 4), (2, 3, 40, 12)),
    ],
)
def test_a_sum_over_rows_is_the_same_product(
    spec: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...], dtype: str
) -> None:
    """Transposing an operand first changes no factor; only the order of the sum may differ."""
    a, b = random(*a_shape, dtype=dtype), random(*b_shape, seed=1, dtype=dtype)
    expected = np.einsum(spec, np.asarray(a, np.float64), np.asarray(b, np.float64))
    for form in (product, row_sum_product):
        got = jax.jit(form, static_argnums=(0, 3))(spec, a, b, jnp.dtype(dtype))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def widened(form: str, a: jax.Array, b: jax.Array, *, rows: bool) -> bool:
    """Whether the compiled program makes float32 copies of the bfloat16 operands."""
    which = row_sum_product if rows else product
    compiled = jax.jit(lambda a, b: which(form, a, b, BFLOAT16)).lower(a, b).compile().as_text()
    large = (f"f32[{shape}]" for shape in ("256,128", "128,256", "256,384", "384,256"))
    return any(text in compiled for text in large)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about XLA's CPU backend")
def test_sums_over_rows_keep_bfloat16_operands_where_xla_can() -> None:
    """As the product whose sum runs over the last axes; control: the plain form widens both."""
    rows_a, rows_b = random(256, 128, dtype="bfloat16"), random(256, 384, dtype="bfloat16")
    last_a, last_b = rows_a.T, rows_b.T
    if widened("or,ir->oi", jnp.array(last_a), jnp.array(last_b), rows=False):
        pytest.skip("this XLA widens every bfloat16 product")
    assert not widened("ro,ri->oi", rows_a, rows_b, rows=True)
    assert widened("ro,ri->oi", rows_a, rows_b, rows=False)


def transposes(function: Callable, *arguments: jax.Array) -> int:
    """Layout constraints in the program of the function's gradients."""
    return str(jax.make_jaxpr(jax.grad(function))(*arguments)).count("= layout_constraint[")


def test_every_sum_over_tokens_of_the_backward_pass_is_one_of_these() -> None:
    """One for a weight, two for keys and values in each block, one for the head; float32: none."""
    x, weight = random(40, 8), random(12, 8, seed=1)
    q, k = random(1, 512, 2, 4), random(1, 512, 1, 4, seed=1)
    targets, ones = jnp.zeros(40, jnp.int32), jnp.ones(40)
    for dtype, expected in (("bfloat16", (1, 4, 1)), ("float32", (0, 0, 0))):
        kind = jnp.dtype(dtype)
        counts = (
            transposes(lambda w, kind=kind: weight_product(x, w, kind).sum(), weight),
            transposes(
                lambda q, kind=kind: self_attention(q, k, k, scale=1.0, dtype=kind).sum(), q
            ),
            transposes(
                lambda w, kind=kind: chunked_cross_entropy(
                    x, w, targets=targets, weights=ones, chunk=40, dtype=kind
                ),
                weight,
            ),
        )
        assert counts == expected, dtype


def test_mixed_gradients_are_products_of_rounded_operands() -> None:
    """float32 weight and bias, bfloat16 operands; control: unrounded gradients are elsewhere."""
    x, weight, bias = random(6, 8), random(12, 8, seed=1), random(12, seed=2)
    d_out = random(6, 12, seed=3)

    def total(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.sum(weight_product(x, weight, BFLOAT16, bias) * d_out)

    got = jax.grad(total, argnums=(0, 1, 2))(x, weight, bias)
    rounded = [np.asarray(a.astype(BFLOAT16), np.float64) for a in (x, weight, d_out)]
    exact = [np.asarray(a, np.float64) for a in (x, weight, d_out)]
    right, wrong = ([d @ w, d.T @ x, d.sum(axis=0)] for x, w, d in (rounded, exact))
    for name, ours, expected, other in zip(("x", "weight", "bias"), got, right, wrong, strict=True):
        # x's gradient goes on in float32, the others into float32 weights: none is rounded again.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(np.asarray(ours) - other).max() > 1e-3, name


def test_a_bias_is_added_in_float32() -> None:
    """On every path: weights of another dtype, few rows, many rows."""
    for rows, weight_dtype in ((3, "float32"), (3, "bfloat16"), (40, "bfloat16")):
        x = random(rows, 8, dtype="bfloat16")
        weight, bias = random(12, 8, seed=1, dtype=weight_dtype), random(12, seed=2) * 1e-3
        without = weight_product(x, weight, BFLOAT16)
        got = weight_product(x, weight, BFLOAT16, bias)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, without + bias[None, :])
