"""The learning rate at the steps that matter, weight decay's mask, clipping, Adam's numbers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_cases import TOY, flat, relative_error, toy_params

from jaxcoder.model import GPTBigCode, init_params
from train.config import OptimizerConfig
from train.optimizer import decays, learning_rate, make_optimizer, moments_are_finite

CONFIG = OptimizerConfig(peak_lr=2e-3, warmup_steps=10, final_lr_ratio=0.1)
STEPS = 110
FLOAT32 = 1e-6
# 1 - beta2^step loses the digits of beta2 that are 9; with 0.999 that is three of float32's seven.
BIAS_CORRECTION = 2e-5


def rates(config: OptimizerConfig = CONFIG, steps: int = STEPS) -> np.ndarray:
    return np.asarray(learning_rate(jnp.arange(steps), config, steps=steps), np.float64)


def test_the_rate_rises_to_the_peak_and_falls_to_its_share() -> None:
    """Above 0 at the first step; the peak ends warm-up; the last step has the final rate."""
    got = rates()
    assert got[:10] == pytest.approx(2e-3 * np.arange(1, 11) / 10, rel=FLOAT32)
    assert got.max() == got[9] == pytest.approx(2e-3, rel=FLOAT32)
    assert got[-1] == pytest.approx(2e-4, rel=FLOAT32)
    half_way = 2e-3 * (0.1 + 0.9 / 2)
    assert got[59] == pytest.approx(half_way, rel=FLOAT32)
    assert (np.diff(got[9:]) < 0).all()
    beyond = learning_rate(STEPS + 5, CONFIG, steps=STEPS)
    assert float(beyond) == pytest.approx(2e-4, rel=FLOAT32)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_warm_up_the_first_step_has_the_peak(warmup_steps: int) -> None:
    config = dataclasses.replace(CONFIG, warmup_steps=warmup_steps)
    assert rates(config)[0] == pytest.approx(2e-3, rel=FLOAT32)
    assert rates(config)[-1] == pytest.approx(2e-4, rel=FLOAT32)


def test_a_run_shorter_than_its_warm_up_still_has_rates() -> None:
    got = rates(steps=4)
    assert got == pytest.approx(2e-3 * np.arange(1, 5) / 10, rel=FLOAT32)


def test_weights_decay_and_biases_and_norms_do_not() -> None:
    params = jax.eval_shape(lambda: init_params(GPTBigCode(TOY), jax.random.key(0)))
    for name, does in flat(decays(params)).items():
        is_weight = name.endswith("/weight") and "ln_" not in name
        assert does == is_weight, name
    assert flat(decays(params))["wpe/weight"]


def test_zero_gradients_shrink_exactly_the_decaying_leaves() -> None:
    params = toy_params()
    optimizer = make_optimizer(CONFIG)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    for name, update in flat(updates).items():
        expected = 0.1 * flat(params)[name] if flat(decays(params))[name] else 0.0
        assert np.array_equal(update, np.broadcast_to(expected, update.shape)), name


def adamw_float64(
    weights: np.ndarray, gradients: list[np.ndarray], config: OptimizerConfig
) -> list[np.ndarray]:
    """The updates of one tensor as the AdamW paper writes them, epsilon beside the root."""
    first, second, updates = np.zeros_like(weights), np.zeros_like(weights), []
    for step, gradient in enumerate(gradients, 1):
        norm = np.sqrt(np.square(gradient).sum())
        gradient = gradient * min(1, config.clip_norm / norm)
        first = config.beta1 * first + (1 - config.beta1) * gradient
        second = config.beta2 * second + (1 - config.beta2) * gradient**2
        root = np.sqrt(second / (1 - config.beta2**step))
        update = first / (1 - config.beta1**step) / (root + config.epsilon)
        updates.append(update + config.weight_decay * weights)
    return updates


# Each a field that an optimizer could ignore.
CHANGES = {
    "beta1": 0.8,
    "beta2": 0.999,
    "epsilon": 1e-2,
    "weight_decay": 0.3,
    "clip_norm": 0.5,
}


@pytest.mark.parametrize("changed", ["nothing", *CHANGES])
def test_updates_equal_adamw_in_float64(changed: str) -> None:
    """Each setting is honoured; control: the formula with the default instead is far away."""
    config = (
        CONFIG
        if changed == "nothing"
        else dataclasses.replace(CONFIG, **{changed: CHANGES[changed]})
    )
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((5, 7)).astype(np.float32)
    gradients = [rng.standard_normal((5, 7)).astype(np.float32) * s for s in (1.0, 0.01, 3.0)]
    optimizer = make_optimizer(config)
    state, updates = optimizer.init({"w": weights}), []
    for gradient in gradients:
        update, state = optimizer.update({"w": gradient}, state, {"w": weights})
        updates.append(update["w"])
    in_float64 = [gradient.astype(np.float64) for gradient in gradients]
    right = adamw_float64(weights.astype(np.float64), in_float64, config)
    assert relative_error(updates, right) <= BIAS_CORRECTION
    if changed != "nothing":
        default = adamw_float64(weights.astype(np.float64), in_float64, CONFIG)
        assert relative_error(updates, default) > 1e-3


def test_a_step_that_is_not_taken_leaves_the_moments_as_they_were() -> None:
    """Bit for bit, whatever the gradient holds; control: a taken one changes them."""
    weights = {"w": jnp.ones((3, 4))}
    optimizer = make_optimizer(CONFIG)
    _, before = optimizer.update(weights, optimizer.init(weights), weights)
    for value, is_taken in ((jnp.nan, False), (2.0, False), (2.0, True)):
        gradients = {"w": jnp.full((3, 4), value)}
        _, after = optimizer.update(gradients, before, weights, is_taken=jnp.bool_(is_taken))
        is_equal = jax.tree.map(np.array_equal, after, before)
        assert all(jax.tree.leaves(is_equal)) is not is_taken


def test_donated_moments_are_changed_in_place() -> None:
    """The gradients of all weights stay, and no copy of the moments; control: optax's own order.

    Also where the step is taken only if the moments are finite.
    """
    matrices, size = 8, 512
    weights = {str(number): jnp.zeros((size, size)) for number in range(matrices)}
    model = matrices * size * size * 4
    assert step_bytes(make_optimizer(CONFIG).update, weights) < 1.5 * model
    library = optax.chain(
        optax.clip_by_global_norm(CONFIG.clip_norm),
        optax.scale_by_adam(CONFIG.beta1, CONFIG.beta2),
        optax.add_decayed_weights(CONFIG.weight_decay),
    )

    def select_later(
        gradients: dict, state: optax.OptState, weights: dict, *, is_taken: jax.Array
    ) -> tuple[dict, optax.OptState]:
        updates, new = library.update(gradients, state, weights)
        return updates, jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), new, state)

    assert step_bytes(select_later, weights) > 2 * model


def step_bytes(update: Callable, weights: dict) -> int:
    """Memory that a step in place needs beside the weights and the moments."""

    def step(weights: dict, state: optax.OptState, x: jax.Array) -> tuple[dict, optax.OptState]:
        # Products of the weights, so that their gradients are kept and not computed twice.
        def loss(weights: dict) -> jax.Array:
            y = x
            for weight in weights.values():
                y = jnp.tanh(y @ weight)
            return y.sum()

        gradients = jax.grad(loss)(weights)
        is_taken = jnp.isfinite(optax.tree.norm(gradients)) & moments_are_finite(state).all()
        updates, state = update(gradients, state, weights, is_taken=is_taken)
        weights = jax.tree.map(
            lambda leaf, update: jnp.where(is_taken, leaf - 1e-3 * update, leaf), weights, updates
        )
        return weights, state

    size = len(weights["0"])
    state = make_optimizer(CONFIG).init(weights)
    donated = jax.jit(step, donate_argnums=(0, 1))
    compiled = donated.lower(weights, state, jnp.ones((8, size))).compile()
    return compiled.memory_analysis().temp_size_in_bytes
