"""Products at a chosen precision; all products of the model are made here.

In float32 each carries precision HIGHEST, because GPUs and TPUs default to less. In bfloat16 the
operands are bfloat16 and the accumulation is float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Dtype = jnp.dtype

# Up to this many rows a product is written weight first: jax 0.7.2 on CPU otherwise transposes the
# whole weight for every token (measured in docs/decisions/0003).
_FEW_ROWS = 16


def product(spec: str, a: Array, b: Array, dtype: Dtype) -> Array:
    """einsum(spec, a, b) with operands in `dtype`, accumulated and returned in float32."""
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.einsum(
        spec,
        a.astype(dtype),
        b.astype(dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


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
