"""The leaves of a pytree by name: copied to the host, compared, put back on devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with names such as ``params/wte/embedding``, in the tree's order.

    Raises:
      ValueError: two leaves have one name.
    """
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    if len(dict(named)) < len(named):
        names = [name for name, _ in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"leaves share a name: {', '.join(twice)}; expected one name per leaf")
    return named


def host_copy(name: str, leaf: Any) -> np.ndarray:
    """The leaf as NumPy, in memory of its own.

    Raises:
      ValueError: it is no array, empty, or a typed PRNG key.
    """
    if not isinstance(leaf, np.ndarray | jax.Array):
        raise ValueError(f"{name} is a {type(leaf).__name__}, expected an array")
    if not leaf.size or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"{name} is {leaf.dtype}{list(leaf.shape)}, expected an array with elements; a typed "
            "PRNG key is stored as its jax.random.key_data"
        )
    # While a view of it exists, JAX does not donate a buffer; NumPy's may be written to.
    return np.array(leaf, copy=True)


def describe(leaf: Any) -> dict[str, Any]:
    """Shape and dtype as JSON has them."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def is_same(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays agree in shape, type and every bit, NaNs among them."""
    if describe(array) != describe(other):
        return False
    a, b = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (array, other))
    return np.array_equal(a, b)


def leaf_problems(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Where leaves `saved`, as `describe` gives them, are not those `expected`, both by name."""
    problems = [f"{name} is missing" for name in expected if name not in saved]
    problems += [f"{name} is not part of this run" for name in saved if name not in expected]
    for name, leaf in expected.items():
        wanted = describe(leaf)
        found = saved.get(name, wanted)
        if found != wanted:
            problems.append(
                f"{name} is {found['dtype']} {found['shape']}, "
                f"expected {wanted['dtype']} {wanted['shape']}"
            )
    return problems


def placed(array: np.ndarray, like: Any) -> Any:
    """`array` where `like` is; where it has no sharding, the default device; NumPy stays."""
    if isinstance(like, np.ndarray):
        return array
    return jax.device_put(array, like.sharding)
