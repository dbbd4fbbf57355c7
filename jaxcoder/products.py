"""Products at a chosen precision; all products of the model are made here.

In float32 each carries precision HIGHEST, because GPUs and TPUs default to less. In bfloat16 the
operands are bfloat16 and the accumulation is float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

Array = jax.Array
Dtype = jnp.dtype

FLOAT32 = jnp.dtype(jnp.float32)
"""The dtype itself: `jnp.float32` is a scalar type that stands for it."""

# Up to this many rows a product is written weight first: jax 0.7.2 on CPU otherwise transposes the
# whole weight for every token (measured in docs/decisions/0003).
_FEW_ROWS = 16


def product(spec: str, a: Array, b: Array, dtype: Dtype) -> Array:
    """``einsum(spec, a, b)`` with operands in `dtype`, accumulated and returned in float32.

    The axes are those of `spec`.
    """
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.einsum(
        spec,
        a.astype(dtype),
        b.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def row_sum_product(spec: str, a: Array, b: Array, dtype: Dtype) -> Array:
    """`product` that sums over the last axis but one of `a`, and over no last axis of `b` either.

    `spec` and `dtype` are those of `product`.

    On CPU, a newer XLA uses the processor's bfloat16 instructions for every other product: for this
    one `a` is transposed in memory, which takes less than that saves (docs/decisions/0012). Let `a`
    be the smaller one, or where both are large the one that comes first in the output: that must
    not be transposed in the same breath, XLA would undo it.
    """
    if dtype == jnp.float32:
        return product(spec, a, b, dtype)
    return lax.platform_dependent(
        a.astype(dtype),
        b.astype(dtype),
        cpu=functools.partial(_with_transposed, spec, dtype),
        default=lambda a, b: product(spec, a, b, dtype),
    )


def _with_transposed(spec: str, dtype: Dtype, a: Array, b: Array) -> Array:
    of_a, _, rest = spec.partition(",")
    swapped = of_a[:-2] + of_a[:-3:-1]
    # Without the constraint XLA would take the transpose into the product that reads it.
    in_order = Layout(major_to_minor=tuple(range(a.ndim)))
    a = with_layout_constraint(a.swapaxes(-1, -2), in_order)
    return product(f"{swapped},{rest}", a, b, dtype)


def weight_product(x: Array, weight: Array, dtype: Dtype, bias: Array | None = None) -> Array:
    """`x` [..., in] times weight [out, in], plus bias [out]: float32 [..., out].

    The only product with a weight.
    """
    rows = x.reshape(-1, x.shape[-1])
    if weight.dtype != dtype:
        out = _mixed_product(rows, weight, bias, dtype)
    elif len(rows) <= _FEW_ROWS:
        out = _biased(product("oi,ri->or", weight, rows, dtype).T, bias)
    else:
        out = _biased(product("ri,oi->ro", rows, weight, dtype), bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _biased(rows: Array, bias: Array | None) -> Array:
    return rows if bias is None else rows + bias.astype(jnp.float32)[None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mixed_product(rows: Array, weight: Array, bias: Array | None, dtype: Dtype) -> Array:
    """rows [R, in], weight [out, in] and bias [out] of another dtype -> float32 [R, out].

    Left to itself, JAX multiplies the float32 gradient with `dtype` operands and rounds what comes
    out to `dtype`; here the gradient is rounded before the products, whose sums stay float32. The
    bias's gradient sums the rounded one too, or the unrounded gradient would be kept for it.
    """
    return _biased(product("ri,oi->ro", rows, weight, dtype), bias)


def _mixed_forward(
    rows: Array, weight: Array, bias: Array | None, dtype: Dtype
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    rows = rows.astype(dtype)
    return _mixed_product(rows, weight, bias, dtype), (rows, weight, bias)


def _mixed_backward(
    dtype: Dtype, kept: tuple[Array, Array, Array | None], d_out: Array
) -> tuple[Array, Array, Array | None]:
    rows, weight, bias = kept
    d_out = d_out.astype(dtype)
    d_rows = product("ro,oi->ri", d_out, weight, dtype)
    d_weight = row_sum_product("ro,ri->oi", d_out, rows, dtype).astype(weight.dtype)
    if bias is None:
        return d_rows, d_weight, None
    d_bias = jnp.sum(d_out, axis=0, dtype=jnp.float32)
    return d_rows, d_weight, d_bias.astype(bias.dtype)


_mixed_product.defvjp(_mixed_forward, _mixed_backward)
