"""Low-rank adapters: the frozen model stays, the merged one is the adapted one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import (
    TOY,
    as_numpy,
    assert_bitwise_equal,
    flat,
    packed_batch,
    toy_config,
    toy_params,
    toy_state,
)

from jaxcoder import layers
from jaxcoder.errors import ConfigError
from train.config import LoraConfig
from train.lora import TARGETS, check_lora, init_adapters, merge, target_shapes
from train.step import TrainState, eval_step, model_params, train_step

LORA = LoraConfig(rank=4, alpha=8.0)
# The change is added to the weight before the product, or to the product.
MERGED_TOLERANCE = 1e-5


def trained(lora: LoraConfig, steps: int = 5) -> TrainState:
    config = toy_config(lora=lora)
    state = toy_state(config)
    for seed in range(steps):
        state, _ = train_step(state, packed_batch(seed=seed), config=config)
    return state


def test_the_frozen_weights_stay_bitwise_and_the_adapters_move() -> None:
    state = trained(LORA)
    assert_bitwise_equal(state.frozen, toy_params())
    fresh = toy_state(toy_config(lora=LORA)).params
    for name, leaf in flat(state.params).items():
        assert not np.array_equal(leaf, flat(fresh)[name]), name


def test_there_is_an_adapter_for_each_target_of_each_block() -> None:
    lora = dataclasses.replace(LORA, targets=("attn/kv", "mlp/c_fc"))
    shapes = {name: leaf.shape for name, leaf in flat(trained(lora, steps=1).params).items()}
    assert shapes == {
        "h_0/attn/kv/a": (4, 32),
        "h_0/attn/kv/b": (16, 4),
        "h_0/mlp/c_fc/a": (4, 32),
        "h_0/mlp/c_fc/b": (128, 4),
        "h_1/attn/kv/a": (4, 32),
        "h_1/attn/kv/b": (16, 4),
        "h_1/mlp/c_fc/a": (4, 32),
        "h_1/mlp/c_fc/b": (128, 4),
    }


def test_only_adapters_have_moments() -> None:
    state = trained(LORA, steps=1)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    adapters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(sizes) == 2 * adapters + 1


def test_fresh_adapters_change_nothing() -> None:
    """B is zero: the first step starts from the frozen model, bitwise."""
    config = toy_config(lora=LORA)
    state = toy_state(config)
    assert_bitwise_equal(model_params(state, config=config), toy_params())


def test_adapters_are_reproducible_and_unlike_each_other() -> None:
    params = toy_params()
    first, again, other = (
        init_adapters(params, jax.random.key(seed), config=LORA) for seed in (0, 0, 1)
    )
    assert_bitwise_equal(first, again)
    matrices = [*flat(first).items(), *flat(other).items()]
    draws = [np.asarray(leaf).tobytes() for name, leaf in matrices if name.endswith("/a")]
    assert len(set(draws)) == len(draws) == 2 * 5 * TOY.n_layer


def adapted_nll(state: TrainState, monkeypatch: pytest.MonkeyPatch, *, scale: float) -> float:
    """The loss with each adapter beside its weight: W x + scale · B (A x), nothing merged."""
    by_weight = {}
    adapters = flat(state.params)
    for name, leaf in flat(state.frozen).items():
        path = name.removesuffix("/weight")
        if f"{path}/a" in adapters:
            by_weight[np.asarray(leaf).tobytes()] = (adapters[f"{path}/a"], adapters[f"{path}/b"])
    plain, used = layers.weight_product, []

    def beside(
        x: jax.Array, weight: jax.Array, dtype: jnp.dtype, bias: jax.Array | None = None
    ) -> jax.Array:
        out = plain(x, weight, dtype, bias)
        adapter = by_weight.get(np.asarray(weight).tobytes())
        if adapter is None:
            return out
        used.append(weight.shape)
        a, b = adapter
        return out + scale * plain(plain(x, a, dtype), b, dtype)

    with monkeypatch.context() as patched, jax.disable_jit():
        patched.setattr(layers, "weight_product", beside)
        loss, _ = eval_step(state.frozen, packed_batch(seed=9), config=toy_config())
    assert len(used) == len(by_weight) == 5 * TOY.n_layer
    return float(loss)


def test_merged_weights_compute_what_the_adapters_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: another scale than alpha / rank, and the frozen model, give other losses."""
    state = trained(LORA)
    config = toy_config(lora=LORA)
    merged = model_params(state, config=config)
    loss = float(eval_step(merged, packed_batch(seed=9), config=config)[0])
    beside = adapted_nll(state, monkeypatch, scale=2.0)
    assert loss == pytest.approx(beside, rel=MERGED_TOLERANCE)
    wrong = adapted_nll(state, monkeypatch, scale=1.0)
    assert loss != pytest.approx(wrong, rel=10 * MERGED_TOLERANCE)
    frozen = float(eval_step(state.frozen, packed_batch(seed=9), config=config)[0])
    assert loss != pytest.approx(frozen, rel=10 * MERGED_TOLERANCE)


def test_merging_leaves_other_tensors_and_its_arguments_alone() -> None:
    state = trained(dataclasses.replace(LORA, targets=("attn/q",)))
    before = as_numpy((state.frozen, state.params))
    merged = merge(state.frozen, state.params, config=LORA)
    assert_bitwise_equal((state.frozen, state.params), before)
    assert jax.tree.structure(merged) == jax.tree.structure(state.frozen)
    for name, leaf in flat(merged).items():
        is_target = name.endswith("attn/q/weight")
        assert np.array_equal(leaf, flat(state.frozen)[name]) != is_target, name


def test_a_bad_step_leaves_adapters_and_frozen_weights() -> None:
    config, batch = toy_config(lora=LORA), packed_batch()
    state = trained(LORA)
    before = as_numpy(state)
    batch.loss_mask[0, 0] = np.inf
    after, metrics = train_step(state, batch, config=config)
    assert not metrics.is_finite
    assert_bitwise_equal((after.params, after.frozen), (before.params, before.frozen))
    assert_bitwise_equal(after.opt_state, before.opt_state)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoraConfig(rank=-1), "rank is -1"),
        (LoraConfig(rank=17), "rank is 17, expected 0 to 16, the least side of attn/kv [16, 32]"),
        (LoraConfig(rank=33, targets=("attn/q", "mlp/c_fc")), "expected 0 to 32, the least side"),
        (LoraConfig(rank=4, alpha=0.0), "alpha is 0.0"),
        (LoraConfig(rank=4, alpha=float("nan")), "alpha is nan"),
        (LoraConfig(rank=4, targets=("attn/q", "attn/k")), "targets is attn/q, attn/k"),
        (LoraConfig(rank=4, targets=("attn/q", "attn/q")), "each once"),
        (LoraConfig(rank=4, targets=()), "targets is empty"),
    ],
)
def test_settings_without_sense_are_refused(lora: LoraConfig, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_lora(lora, TOY)
    assert message in str(caught.value)


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_lora(LoraConfig(rank=-1, alpha=-1.0, targets=()), TOY)
    assert all(word in str(caught.value) for word in ("rank is", "alpha is", "targets is"))
    check_lora(LORA, TOY)
    check_lora(LoraConfig(), TOY)


def test_the_rank_may_be_as_large_as_the_targets_allow() -> None:
    """Keys and values have fewer rows than the model is wide, and count where they are adapted."""
    check_lora(LoraConfig(rank=16), TOY)
    check_lora(LoraConfig(rank=32, targets=("attn/q", "mlp/c_fc")), TOY)
    narrow = dataclasses.replace(TOY, n_inner=8)
    with pytest.raises(ConfigError, match=r"0 to 8, the least side of mlp/c_fc \[8, 32\]"):
        check_lora(LoraConfig(rank=9), narrow)


def test_the_shapes_are_those_of_the_parameters() -> None:
    """What the check reckons with is what the adapters are made for."""
    block = toy_params()["h_0"]
    shapes = {
        target: block[target.split("/")[0]][target.split("/")[1]]["weight"].shape
        for target in TARGETS
    }
    assert target_shapes(TOY) == shapes
