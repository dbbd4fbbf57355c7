"""Every dtype and precision in the programs that run is chosen, read from their jaxprs.

float32: each product carries precision HIGHEST, because GPUs and TPUs default to less.
bfloat16: operands of products are bfloat16 and accumulate in float32, the cache holds bfloat16, and
everything else (residual stream, LayerNorm, softmax, GELU, logits, sampling) is float32.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxcoder import cached_attention, layers, products, self_attention
from jaxcoder.cache import init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.generate import DecodeState, decode_chunk, prefill
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.sampling import sampling_params
from train.config import OptimizerConfig
from train.data import Batch
from train.step import StepConfig, init_state, loss_and_gradients

BATCH, CAPACITY, PIECE = 2, 64, 32

# Primitives that move values and compute nothing with them.
MOVES = frozenset(["gather", "scatter", "slice", "reshape", "transpose", "concatenate"])
# Primitives whose equations only hold other jaxprs.
HOLDERS = frozenset(["jit", "pjit", "cond", "scan"])
PER_LAYER_DOWNCASTS = (
    "input of q",
    "input of kv",
    "queries",
    "keys and values into the cache",
    "attention weights",
    "input of attn.c_proj",
    "input of c_fc",
    "input of mlp.c_proj",
)
PER_MODEL_DOWNCASTS = ("input of the output head",)


class Program(NamedTuple):
    """A jaxpr and where it came from."""

    name: str
    jaxpr: ClosedJaxpr


def programs(config: ModelConfig, dtype: jnp.dtype) -> list[Program]:
    """`prefill` and `decode_chunk` of a model whose weights are held in `dtype`, traced afresh."""
    model = GPTBigCode(config, dtype=dtype, param_dtype=dtype)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    state = DecodeState(
        logits=np.zeros((BATCH, config.vocab_size), np.float32),
        seen=np.zeros((BATCH, config.vocab_size), np.bool_),
        cache=init_cache(config, BATCH, CAPACITY, dtype),
        remaining=np.ones(BATCH, np.int32),
    )
    tokens, counts = np.zeros((BATCH, PIECE), np.int32), np.ones(BATCH, np.int32)
    sampling = sampling_params(BATCH, temperature=0.8, top_k=5, top_p=0.9)
    eos, stopped = np.array([0], np.int32), np.zeros(BATCH, np.bool_)
    # Without their jit, whose cache would hide a change of the functions below it.
    run_prefill = functools.partial(prefill.__wrapped__, model)
    run_decode = functools.partial(decode_chunk.__wrapped__, model, steps=2)
    return [
        Program("prefill", jax.make_jaxpr(run_prefill)(params, state, tokens, counts)),
        Program("decode", jax.make_jaxpr(run_decode)(params, state, sampling, eos, stopped)),
    ]


def equations(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """Every equation of a jaxpr and of those inside it: calls, branches, loop bodies."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    for equation in inner.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, ClosedJaxpr | Jaxpr):
                    yield from equations(part)


def dtypes(atoms: list) -> set[str]:
    """The floating dtypes among inputs or outputs of an equation."""
    return {str(atom.aval.dtype) for atom in atoms if jnp.issubdtype(atom.aval.dtype, jnp.floating)}


def dots(jaxpr: ClosedJaxpr) -> list[jax.extend.core.JaxprEqn]:
    return [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]


def imprecise_products(jaxpr: ClosedJaxpr) -> list[str]:
    """Products that are not float32 x float32 -> float32 at precision HIGHEST."""
    highest = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    return [
        str(eqn)
        for eqn in dots(jaxpr)
        if dtypes([*eqn.invars, *eqn.outvars]) != {"float32"} or eqn.params["precision"] != highest
    ]


def wide_products(jaxpr: ClosedJaxpr) -> list[str]:
    """Products that are not bfloat16 x bfloat16 -> float32."""
    return [
        str(eqn)
        for eqn in dots(jaxpr)
        if [str(atom.aval.dtype) for atom in eqn.invars] != ["bfloat16", "bfloat16"]
        or dtypes(eqn.outvars) != {"float32"}
        or eqn.params["preferred_element_type"] != jnp.float32
    ]


def low_precision_arithmetic(jaxpr: ClosedJaxpr) -> list[str]:
    """Anything but a product, a move or a cast that touches bfloat16: sums, norms, exp, GELU."""
    allowed = MOVES | HOLDERS | {"dot_general", "convert_element_type"}
    return [
        str(eqn)
        for eqn in equations(jaxpr)
        if eqn.primitive.name not in allowed and "bfloat16" in dtypes([*eqn.invars, *eqn.outvars])
    ]


def downcasts(jaxpr: ClosedJaxpr) -> list[str]:
    """Casts of float32 to a narrower float."""
    return [
        str(eqn)
        for eqn in equations(jaxpr)
        if eqn.primitive.name == "convert_element_type"
        and dtypes(eqn.invars) == {"float32"}
        and dtypes(eqn.outvars) not in ({"float32"}, set())
    ]


def unchosen_products(jaxpr: ClosedJaxpr) -> list[str]:
    """Products that are neither of the two kinds."""
    return sorted(set(imprecise_products(jaxpr)) & set(wide_products(jaxpr)))


def training_program(config: ModelConfig, dtype: jnp.dtype) -> ClosedJaxpr:
    """Loss and gradients of float32 weights, computed in `dtype`, traced afresh."""
    model = GPTBigCode(config, dtype=dtype)
    settings = StepConfig(model, OptimizerConfig(), steps=1)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, config=settings), params)
    tokens = np.zeros((BATCH, PIECE + 1), np.int32)
    batch = Batch(tokens, tokens + 1, tokens, np.ones((BATCH, PIECE), np.float32))
    return jax.make_jaxpr(functools.partial(loss_and_gradients, config=settings))(state, batch)


def expected_products(config: ModelConfig) -> int:
    """q, kv, scores, mix, c_proj, c_fc, c_proj of each layer, and the head."""
    return 7 * config.n_layer + 1


@pytest.mark.parametrize("multi_query", [True, False])
def test_float32_products_carry_highest_precision(
    tiny_config: ModelConfig, multi_query: bool
) -> None:
    config = ModelConfig(**{**vars(tiny_config), "multi_query": multi_query})
    for program in programs(config, jnp.float32):
        assert len(dots(program.jaxpr)) == expected_products(config), program.name
        assert imprecise_products(program.jaxpr) == [], program.name
        assert downcasts(program.jaxpr) == [], program.name


@pytest.mark.parametrize("multi_query", [True, False])
def test_bfloat16_products_accumulate_in_float32_and_all_else_is_float32(
    tiny_config: ModelConfig, multi_query: bool
) -> None:
    config = ModelConfig(**{**vars(tiny_config), "multi_query": multi_query})
    for program in programs(config, jnp.bfloat16):
        assert len(dots(program.jaxpr)) == expected_products(config), program.name
        assert wide_products(program.jaxpr) == [], program.name
        assert low_precision_arithmetic(program.jaxpr) == [], program.name


def test_bfloat16_downcasts_are_the_listed_ones(tiny_config: ModelConfig) -> None:
    """As many casts as there are listed places; that none is elsewhere the test above shows.

    A downcast value can reach only a product, the cache or a cast back, since nothing else takes
    bfloat16; the count rules out a value that is rounded and widened again.
    """
    expected = len(PER_LAYER_DOWNCASTS) * tiny_config.n_layer + len(PER_MODEL_DOWNCASTS)
    for program in programs(tiny_config, jnp.bfloat16):
        assert len(downcasts(program.jaxpr)) == expected, program.name


def test_products_of_training_are_chosen_too(tiny_config: ModelConfig) -> None:
    """Each has a gradient in both operands; LayerNorm's and attention's sums are float32 always."""
    at_least = 3 * expected_products(tiny_config)
    program = training_program(tiny_config, jnp.float32)
    assert len(dots(program)) > at_least
    assert imprecise_products(program) == []
    program = training_program(tiny_config, jnp.bfloat16)
    assert len(dots(program)) > at_least
    assert unchosen_products(program) == []
    in_bfloat16 = len(dots(program)) - len(wide_products(program))
    assert in_bfloat16 >= at_least
    # Sums as products: two in each LayerNorm's gradient, one in each attention's.
    assert len(wide_products(program)) == 5 * tiny_config.n_layer + 2


def test_a_model_at_default_precision_is_caught(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without its precision and accumulation not one product goes unreported."""

    def default_product(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return jnp.einsum(spec, a.astype(dtype), b.astype(dtype)).astype(jnp.float32)

    for module in (cached_attention, layers, products, self_attention):
        monkeypatch.setattr(module, "product", default_product)
    for program in programs(tiny_config, jnp.float32):
        assert len(imprecise_products(program.jaxpr)) == expected_products(tiny_config)
    for program in programs(tiny_config, jnp.bfloat16):
        assert len(wide_products(program.jaxpr)) == expected_products(tiny_config)
    assert imprecise_products(training_program(tiny_config, jnp.float32))
    assert unchosen_products(training_program(tiny_config, jnp.bfloat16))


def test_a_norm_in_bfloat16_is_caught(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: one LayerNorm that takes its statistics in bfloat16, or rounds what it returns."""
    norm = layers.LayerNorm.__call__
    clean = {p.name: len(downcasts(p.jaxpr)) for p in programs(tiny_config, jnp.bfloat16)}

    def low_precision(self: layers.LayerNorm, x: jax.Array) -> jax.Array:
        return norm(self, x.astype(jnp.bfloat16)).astype(jnp.float32)

    def rounded(self: layers.LayerNorm, x: jax.Array) -> jax.Array:
        return norm(self, x).astype(jnp.bfloat16).astype(jnp.float32)

    monkeypatch.setattr(layers.LayerNorm, "__call__", low_precision)
    for program in programs(tiny_config, jnp.bfloat16):
        assert low_precision_arithmetic(program.jaxpr), program.name
    monkeypatch.setattr(layers.LayerNorm, "__call__", rounded)
    for program in programs(tiny_config, jnp.bfloat16):
        assert low_precision_arithmetic(program.jaxpr) == []
        norms = 2 * tiny_config.n_layer + 1
        assert len(downcasts(program.jaxpr)) == clean[program.name] + norms
