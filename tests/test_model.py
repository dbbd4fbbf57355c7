"""The JAX model: equal to the float64 reference, causal, batched, packed, dropped out, bfloat16."""

import dataclasses

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import (
    CASES,
    MHA,
    MQA,
    forward,
    full_logits,
    random_params,
    random_tensors,
    random_tokens,
    reference_logits,
    to_jax,
)

from jaxcoder import cached_attention, layers, products
from jaxcoder.cache import KVCache, init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf, tensor_shapes
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.self_attention import self_attention

# Float32 has 7 digits; two layers lose about one of them on logits of order 10.
FLOAT32_TOLERANCE = 1e-5
# The same float32 sums in another order.
REORDERED_TOLERANCE = 2e-5
# bfloat16 has 3 digits; measured 0.006 to 0.011 of the logits' spread on these models.
BFLOAT16_RMS_BOUND = 0.03
LENGTH = 21


def float32_error(config: ModelConfig, expected: np.ndarray, tokens: np.ndarray) -> float:
    """Largest error of the JAX logits against `expected`, in units of max(10, max|logit|)."""
    got = full_logits(config, random_params(config), tokens[None])[0]
    assert got.dtype == np.float32
    return float(np.abs(got - expected).max() / max(10, np.abs(expected).max()))


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_equal_the_reference(case: str) -> None:
    config, tokens = CASES[case], random_tokens(LENGTH)
    assert float32_error(config, reference_logits(config, tokens), tokens) <= FLOAT32_TOLERANCE


def test_attention_scales_are_these_numbers() -> None:
    """The model and the reference both ask the config, so that it is held to plain numbers here."""
    by_layer = CASES["gpt2-by-layer"]
    assert MQA.head_dim == by_layer.head_dim == 8
    for layer in (0, 1, 5):
        assert MQA.attention_scale(layer) == pytest.approx(0.3535533905932738, rel=1e-15)
        assert CASES["mqa-unscaled"].attention_scale(layer) == 1
    assert by_layer.attention_scale(0) == pytest.approx(0.3535533905932738, rel=1e-15)
    assert by_layer.attention_scale(1) == pytest.approx(0.1767766952966369, rel=1e-15)
    both = dataclasses.replace(by_layer, scale_attn_weights=False)
    assert both.attention_scale(4) == 0.2


MISTAKES = {
    "epsilon": (MQA, {"layer_norm_epsilon": 1e-3}),
    "activation": (MQA, {"activation_function": "gelu"}),
    "scale": (MHA, {"scale_attn_weights": False}),
    "scale by layer": (CASES["gpt2"], {"scale_attn_by_inverse_layer_idx": True}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_another_config_is_far_from_the_reference(mistake: str) -> None:
    """Control: a field the model ignored would show."""
    config, change = MISTAKES[mistake]
    tokens = random_tokens(LENGTH)
    expected = reference_logits(config, tokens)
    mistaken = dataclasses.replace(config, **change)
    assert float32_error(mistaken, expected, tokens) > 2 * FLOAT32_TOLERANCE


@pytest.mark.parametrize("config", [MQA, MHA], ids=["mqa", "mha"])
def test_every_tensor_of_every_layer_is_used(config: ModelConfig) -> None:
    """Control: one changed weight anywhere changes the logits, so no tensor is left out.

    The one exception is mathematical: adding a constant to all keys shifts the scores of a query
    alike, so the softmax forgets a key's bias. There the change is to the value's bias.
    """
    tokens = random_tokens(1, LENGTH)
    tensors = random_tensors(config)
    right = full_logits(config, random_params(config), tokens)
    for name in tensor_shapes(config):
        changed = tensors[name].copy()
        index = (tokens[0, 3], 2) if "wte" in name else (-1,) * changed.ndim
        if "wpe" in name:
            index = (3, 2)
        changed[index] += 0.5
        params = to_jax(params_from_hf({**tensors, name: changed}, config))
        assert np.abs(full_logits(config, params, tokens) - right).max() > 1e-3, name


@pytest.mark.parametrize("config", [MQA, MHA], ids=["mqa", "mha"])
def test_logits_depend_on_no_later_token(config: ModelConfig) -> None:
    """Causality, bitwise: changing token t leaves the logits before t and changes those at t."""
    length = 12
    tokens = random_tokens(length)
    changed = np.tile(tokens, (length, 1))
    changed[np.arange(length), np.arange(length)] += 1
    changed %= config.vocab_size
    params = random_params(config)
    unchanged = full_logits(config, params, np.tile(tokens, (length, 1)))
    logits = full_logits(config, params, changed)
    for t in range(length):
        assert np.array_equal(logits[t, :t], unchanged[t, :t])
        assert not np.array_equal(logits[t, t], unchanged[t, t])


def test_every_later_position_sees_every_earlier_token() -> None:
    """The gradient of position t reaches tokens 0..t and only those: attention is not local."""
    length = 10
    tokens = random_tokens(1, length)
    params = random_params(MQA)
    model = GPTBigCode(MQA)

    def logits_of(wpe: jax.Array) -> jax.Array:
        moved = {**params, "wpe": {"weight": wpe}}
        return model.apply({"params": moved}, tokens)[0][0].sum(axis=-1)  # [T]

    jacobian = jax.jit(jax.jacrev(logits_of))(params["wpe"]["weight"])[:, :length]  # [T, T, D]
    reaches = np.abs(np.asarray(jacobian)).max(axis=-1) > 0
    assert np.array_equal(reaches, np.tril(np.ones((length, length), bool)))


def test_companions_in_the_batch_change_nothing() -> None:
    """Bitwise in a batch of one size; alone the products are of another shape and may re-round."""
    params = random_params(MQA)
    tokens = random_tokens(4, LENGTH)
    with_others = tokens.copy()
    with_others[1:] = random_tokens(3, LENGTH, seed=9)
    batched = full_logits(MQA, params, tokens)
    assert np.array_equal(full_logits(MQA, params, with_others)[0], batched[0])
    for row in range(len(tokens)):
        alone = full_logits(MQA, params, tokens[row : row + 1])[0]
        assert np.abs(alone - batched[row]).max() <= REORDERED_TOLERANCE


def test_few_rows_and_many_rows_multiply_alike() -> None:
    """The two orders of `weight_product` agree on both sides of the limit between them."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.standard_normal((7, 24)), jnp.float32)
    for rows in (1, products._FEW_ROWS, products._FEW_ROWS + 1, 40):
        x = jnp.asarray(rng.standard_normal((rows, 24)), jnp.float32)
        expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
        got = np.asarray(products.weight_product(x, weight, jnp.float32))
        assert got.shape == (rows, 7)
        assert np.abs(got - expected).max() <= 1e-5


def packed(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """Two documents in one row: tokens, segment ids, and positions that start again."""
    lengths = [len(first), len(second)]
    return {
        "tokens": np.concatenate([first, second])[None],
        "segment_ids": np.repeat(np.array([1, 2], np.int32), lengths)[None],
        "positions": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])[None],
    }


def packed_logits(params: dict, arguments: dict[str, np.ndarray]) -> np.ndarray:
    """Logits [T, V] of one packed row."""
    return np.asarray(forward(GPTBigCode(MQA), params, arguments)[0])[0]


def test_packed_documents_do_not_see_each_other() -> None:
    """Perturbing one document leaves the other bitwise; each equals itself alone."""
    params = random_params(MQA)
    first, second = random_tokens(9), random_tokens(12, seed=2)
    both = packed_logits(params, packed(first, second))
    other_first = packed_logits(params, packed((first + 1) % MQA.vocab_size, second))
    assert np.array_equal(other_first[9:], both[9:])
    assert not np.array_equal(other_first[:9], both[:9])
    other_second = packed_logits(params, packed(first, (second + 1) % MQA.vocab_size))
    assert np.array_equal(other_second[:9], both[:9])
    for document, part in ((first, both[:9]), (second, both[9:])):
        alone = full_logits(MQA, params, document[None])[0]
        assert np.abs(alone - part).max() <= REORDERED_TOLERANCE


def test_in_one_segment_or_with_positions_running_on_packed_documents_do_see_each_other() -> None:
    """Control: without the right value of either, the second document changes."""
    params = random_params(MQA)
    first, second = random_tokens(9), random_tokens(12, seed=2)
    arguments = packed(first, second)
    both = packed_logits(params, arguments)
    one_segment = np.ones((1, 21), np.int32)
    running_on = np.arange(21, dtype=np.int32)[None]
    for name, value in (("segment_ids", one_segment), ("positions", running_on)):
        without = packed_logits(params, arguments | {name: value})
        assert np.abs(without[9:] - both[9:]).max() > 1e-2, name
        assert np.array_equal(without[:9], both[:9]), name


def test_dropout_with_a_cache_is_refused() -> None:
    cache = init_cache(MQA, 1, 8, np.float32)
    rngs = {"dropout": jax.random.key(0)}
    with pytest.raises(ValueError, match="train and a cache were both given"):
        GPTBigCode(MQA).apply(
            {"params": random_params(MQA)}, random_tokens(1, 4), cache=cache, train=True, rngs=rngs
        )


def test_segment_ids_with_a_cache_are_refused() -> None:
    tokens = random_tokens(1, 4)
    cache = init_cache(MQA, 1, 8, np.float32)
    with pytest.raises(ValueError, match="segment_ids and cache were both given"):
        GPTBigCode(MQA).apply(
            {"params": random_params(MQA)},
            tokens,
            segment_ids=np.zeros_like(tokens),
            cache=cache,
        )


@pytest.mark.parametrize("config", [MQA, MHA], ids=["mqa", "mha"])
def test_attention_in_query_blocks_equals_attention_at_once(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long sequences attend block by block; 21 queries in blocks of 4 leave a last block of 1."""
    params = random_params(config)
    arguments = packed(random_tokens(9), random_tokens(12, seed=2))
    model = GPTBigCode(config)

    def logits() -> np.ndarray:
        def cached(params: dict, cache: KVCache) -> jax.Array:
            return model.apply({"params": params}, arguments["tokens"], cache=cache)[0]

        # Compiled afresh each time: the block size is read while tracing.
        return jax.device_get(jax.jit(cached)(params, init_cache(config, 1, 32, np.float32)))

    at_once = logits()
    calls = []
    product = products.product

    def counted(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
        calls.append(spec)
        return product(spec, a, b, dtype)

    monkeypatch.setattr(cached_attention, "QUERY_BLOCK", 4)
    monkeypatch.setattr(cached_attention, "product", counted)
    in_blocks = logits()
    assert calls.count("bkrh,bskh->bkrs") == config.n_layer * 6
    assert np.abs(in_blocks - at_once).max() <= REORDERED_TOLERANCE


def dropout_outputs(
    config: ModelConfig, params: dict, *, train: bool
) -> dict[tuple[str, ...], np.ndarray]:
    """What every dropout of the model gave: path of module names -> its output."""

    def captured(params: dict) -> dict:
        _, state = GPTBigCode(config).apply(
            {"params": params},
            random_tokens(4, 24),
            train=train,
            rngs={"dropout": jax.random.key(3)},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
            mutable=["intermediates"],
        )
        return state["intermediates"]

    flat, _ = jax.tree_util.tree_flatten_with_path(jax.jit(captured)(params))
    return {tuple(key.key for key in path[:-2]): np.asarray(leaf) for path, leaf in flat}


def rate_name(path: tuple[str, ...]) -> str:
    """The config field that the dropout at `path` must obey."""
    return "embd_pdrop" if path == ("dropout",) else "resid_pdrop"


@pytest.mark.parametrize("name", ["embd_pdrop", "resid_pdrop"])
def test_each_dropout_rate_acts_alone_and_at_its_rate(name: str) -> None:
    """One rate at a time is 0.3: its dropouts zero that share, the others zero nothing.

    For the weights of attention see test_self_attention.py.
    """
    rate = 0.3
    outputs = dropout_outputs(
        dataclasses.replace(MQA, **{name: rate}), random_params(MQA), train=True
    )
    assert len(outputs) == 1 + 2 * MQA.n_layer
    acted = 0
    for path, output in outputs.items():
        fraction = float((output == 0).mean())
        if rate_name(path) == name:
            acted += 1
            # At least 2300 entries: 5 standard deviations of the measured share.
            assert abs(fraction - rate) < 5 * np.sqrt(rate * (1 - rate) / 2300), path
        else:
            assert fraction == 0, path
    assert acted == {"embd_pdrop": 1, "resid_pdrop": 4}[name]


def test_kept_values_are_scaled_up_by_the_dropout() -> None:
    """The expectation is kept: what survives is divided by one minus the rate."""
    config = dataclasses.replace(MQA, embd_pdrop=0.3)
    params = random_params(config)
    dropped = dropout_outputs(config, params, train=True)[("dropout",)]
    whole = dropout_outputs(config, params, train=False)[("dropout",)]
    kept = dropped != 0
    assert np.allclose(dropped[kept], whole[kept] / 0.7, rtol=1e-6, atol=0)


def test_dropout_of_attention_weights_acts_in_training_with_a_key_of_each_layer() -> None:
    """The layers' keys differ: one key would drop the same weights in all of them."""
    config = dataclasses.replace(MQA, attn_pdrop=0.3)
    params, tokens = random_params(MQA), random_tokens(1, LENGTH)
    keys = []

    def spy(*args: jax.Array, dropout_key: jax.Array, **choices: object) -> jax.Array:
        keys.append(jax.random.key_data(dropout_key).tolist())
        return self_attention(*args, dropout_key=dropout_key, **choices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "self_attention", spy)
        rngs = {"dropout": jax.random.key(3)}
        out, _ = GPTBigCode(config).apply({"params": params}, tokens, train=True, rngs=rngs)
    assert len({*map(tuple, keys)}) == config.n_layer
    assert np.abs(out - full_logits(MQA, params, tokens)).max() > 0.01


def test_dropout_is_off_at_inference_and_needs_a_key_in_training() -> None:
    config = dataclasses.replace(MQA, embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3)
    params, tokens = random_params(MQA), random_tokens(1, LENGTH)
    without = full_logits(MQA, params, tokens)
    assert np.array_equal(full_logits(config, params, tokens), without)
    model = GPTBigCode(config)

    @jax.jit
    def train_logits(key: jax.Array) -> jax.Array:
        return model.apply({"params": params}, tokens, train=True, rngs={"dropout": key})[0]

    def trained(seed: int) -> np.ndarray:
        return np.asarray(train_logits(jax.random.key(seed)))

    assert np.array_equal(trained(0), trained(0))
    assert not np.array_equal(trained(0), trained(1))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        model.apply({"params": params}, tokens, train=True)


@pytest.mark.parametrize("case", CASES)
def test_fresh_parameters_have_the_tree_that_loaded_ones_have(case: str) -> None:
    config = CASES[case]
    fresh = jax.eval_shape(lambda key: init_params(GPTBigCode(config), key), jax.random.key(0))
    loaded = params_from_hf(random_tensors(config), config)
    assert jax.tree.map(lambda leaf: leaf.shape, fresh) == jax.tree.map(np.shape, loaded)


def test_fresh_parameters_are_gpt2s_initialisation() -> None:
    """Standard deviation 0.02, c_proj divided by sqrt(2L), biases 0, norms 1 and 0."""
    config = CASES["mha-untied"]
    params = init_params(GPTBigCode(config), jax.random.key(0))
    pools: dict[float, list[np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names, values = [key.key for key in path], np.asarray(leaf)
        assert values.dtype == np.float32
        if names[-1] == "bias":
            assert not values.any(), names
        elif names[-2].startswith("ln_"):
            assert (values == 1).all(), names
        else:
            std = 0.02 / np.sqrt(2 * config.n_layer) if names[-2] == "c_proj" else 0.02
            # 576 entries at least: 5 standard deviations of a measured deviation are 15%.
            assert abs(values.std() / std - 1) < 0.15, names
            pools.setdefault(std, []).append(values.ravel())
    assert len(pools) == 2
    for std, pool in pools.items():
        together = np.concatenate(pool)
        assert abs(together.std() / std - 1) < 0.05
        assert abs(together.mean()) < 5 * std / np.sqrt(together.size)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_model_is_close_to_float32(param_dtype: jnp.dtype) -> None:
    """Weights kept in float32 or rounded once; the logits come out in float32 either way."""
    tokens = random_tokens(2, LENGTH)
    params = random_params(MQA)
    exact = full_logits(MQA, params, tokens)
    held = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    logits, _ = forward(GPTBigCode(MQA, dtype=jnp.bfloat16), held, {"tokens": tokens})
    assert logits.dtype == jnp.float32
    error = np.sqrt(np.mean((np.asarray(logits) - exact) ** 2)) / exact.std()
    assert 1e-4 < error < BFLOAT16_RMS_BOUND
