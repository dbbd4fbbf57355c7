"""Flax's bridge makes an NNX module of the model: docs/nnx.md, which test_docs.py runs.

Skipped where nnx does not import.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcoder.cache import init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.model import GPTBigCode, init_params

nnx = pytest.importorskip("flax.nnx", exc_type=ImportError)

TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int32)


@pytest.fixture(scope="module")
def linen(tiny_config: ModelConfig) -> tuple[GPTBigCode, dict]:
    model = GPTBigCode(tiny_config)
    return model, init_params(model, jax.random.key(1))


@pytest.fixture(scope="module")
def bridged(linen: tuple[GPTBigCode, dict]) -> object:
    model, params = linen
    module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(TOKENS)
    nnx.update(module, params)
    return module


def test_logits_are_those_of_the_linen_module(linen: tuple[GPTBigCode, dict], bridged) -> None:
    """Bit for bit. Control: the bridge's own fresh weights give others."""
    model, params = linen
    expected, _ = jax.jit(model.apply)({"params": params}, TOKENS)
    logits, _ = nnx.jit(lambda module, tokens: module(tokens))(bridged, TOKENS)
    np.testing.assert_array_equal(logits, expected)
    fresh = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(TOKENS)
    assert not np.array_equal(fresh(TOKENS)[0], expected)


def test_every_weight_is_a_param(linen: tuple[GPTBigCode, dict], bridged) -> None:
    _, params = linen
    found = jax.tree.leaves(nnx.state(bridged, nnx.Param))
    expected = jax.tree.leaves(params)
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in expected]
    np.testing.assert_array_equal(
        bridged.h_0["attn"]["q"]["weight"][...], params["h_0"]["attn"]["q"]["weight"]
    )


def test_gradients_are_those_of_the_linen_module(linen: tuple[GPTBigCode, dict], bridged) -> None:
    model, params = linen

    def of_logits(logits: jax.Array) -> jax.Array:
        return jnp.square(logits).mean()

    expected = jax.jit(
        jax.grad(lambda params: of_logits(model.apply({"params": params}, TOKENS)[0]))
    )(params)
    found = nnx.jit(nnx.grad(lambda module: of_logits(module(TOKENS)[0])))(bridged)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


def test_a_cache_goes_in_and_comes_out(linen: tuple[GPTBigCode, dict], bridged) -> None:
    model, _ = linen
    cache = init_cache(model.config, 1, 16, model.dtype)
    call = nnx.jit(lambda module, tokens, cache: module(tokens, cache=cache))
    _, cache = call(bridged, TOKENS[:, :5], cache)
    logits, cache = call(bridged, TOKENS[:, 5:], cache)
    assert cache.lengths.tolist() == [8]
    np.testing.assert_allclose(logits, bridged(TOKENS)[0][:, 5:], atol=1e-5)
